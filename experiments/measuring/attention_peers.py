"""Attention of others, for one token a row over full keys and values.

Each is given queries `[B, K, G, 1, H]`, keys and values `[B, K, S, H]` and
lays them out beforehand as it likes best. torch reads the very bytes that JAX
holds. Where a backend of torch has no form for several query heads a kv head,
they are G rows of queries over it: one token sees all keys, so no mask tells
rows from heads, and keys are read once.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.measuring.peers import missing, torch_device
from kvjax.context import target

Call = Callable[[], Any]
Given = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Peer:
  """One way to attend.

  Attributes:
    name: in results.
    make: of several queries, keys and values in the dtype that is measured, a
      call that attends to all of them, one after the other.
    modules: that it needs.
    platforms: that it is raced on.
  """

  name: str
  make: Callable[[Sequence[Given]], Call]
  modules: tuple[str, ...] = ()
  platforms: tuple[str, ...] = ('cpu', 'gpu')


def jax_nn(
  given: Sequence[Given], implementation: Literal['xla', 'cudnn']
) -> Call:
  """Returns `jax.nn.dot_product_attention`, keys laid out as it asks."""

  def laid_out(q, k, v):
    query = q.reshape(q.shape[0], 1, -1, q.shape[-1])
    return query, *(jnp.array(jnp.swapaxes(x, 1, 2)) for x in (k, v))

  ready = [laid_out(*each) for each in given]
  query, caches = ready[0][0], [each[1:] for each in ready]
  # On a CPU one by one: it repeats keys for every query head, and a program of
  # several holds them all.
  parts = [[x] for x in caches] if target() == 'cpu' else [caches]
  held = [[jnp.zeros_like(given[0][0]) for _ in part] for part in parts]

  def call():  # as `attention.steady`
    for index, part in enumerate(parts):
      held[index] = _jax_nn(query, part, held[index], implementation)
    return [out for outs in held for out in outs]

  return call


@functools.partial(
  jax.jit,
  static_argnames='implementation',
  donate_argnames='old',
  keep_unused=True,
)
def _jax_nn(query, caches, old, implementation):
  outs = []
  for cache, like in zip(caches, old, strict=True):
    # Each asks with the last one's answer: in order.
    query = jax.nn.dot_product_attention(
      query, *cache, implementation=implementation
    )
    outs.append(query.reshape(like.shape))
  return outs


def torch_calls(given: Sequence[Given], make: Callable[[Any], Any]) -> Call:
  """Returns a torch function of each q, k, v; replayed as a graph on a GPU.

  Args:
    given: queries, keys and values.
    make: of the module torch, a function of three tensors shaped likewise.
  """
  torch: Any = importlib.import_module('torch')
  tensors = [[torch.from_dlpack(x) for x in each] for each in given]
  attend = make(torch)

  def call():
    with torch.inference_mode():
      return [attend(q, k, v).reshape(q.shape) for q, k, v in tensors]

  return captured(torch, call) if torch_device() == 'cuda' else call


def captured(torch: Any, call: Call) -> Call:
  """Returns the replay of what a call launches: no Python in between."""
  aside = torch.cuda.Stream()
  aside.wait_stream(torch.cuda.current_stream())
  with torch.cuda.stream(aside):
    for _ in range(3):  # what is compiled, tuned or allocated, is by now
      call()
  torch.cuda.current_stream().wait_stream(aside)
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    results = call()

  def replay():
    graph.replay()
    return results

  return replay


def sdpa(torch: Any) -> Any:
  """Returns torch's attention as one calls it: heads, and torch's choice."""
  attend = torch.nn.functional.scaled_dot_product_attention

  def call(q, k, v):
    query = q.reshape(q.shape[0], -1, 1, q.shape[-1])
    return attend(query, k, v, enable_gqa=q.shape[2] > 1)

  return call


def sdpa_backend(torch: Any, backend: str) -> Any:
  """Returns one backend of it; refused by torch where it cannot serve."""
  room = importlib.import_module('torch.nn.attention')
  chosen = getattr(room.SDPBackend, backend)
  attend = torch.nn.functional.scaled_dot_product_attention

  def call(q, k, v):
    with room.sdpa_kernel(chosen):
      return attend(q[:, :, :, 0], k, v)

  return call


def flex(torch: Any) -> Any:
  """Returns FlexAttention, compiled on a GPU (its decoding kernel)."""
  room = importlib.import_module('torch.nn.attention.flex_attention')
  attend = room.flex_attention
  if torch_device() == 'cuda':
    attend = torch.compile(attend, dynamic=False)

  def call(q, k, v):
    query = q.reshape(q.shape[0], -1, 1, q.shape[-1])
    return attend(query, k, v, enable_gqa=q.shape[2] > 1)

  return call


def triton_split(torch: Any) -> Any:
  """Returns the split-KV kernel of `triton_decode`."""
  del torch
  room = importlib.import_module('experiments.measuring.triton_decode')
  return lambda q, k, v: room.attend(q[:, :, :, 0], k, v)


def _torch(name: str, make: Any, *more: str, cpu: bool = False) -> Peer:
  platforms = ('cpu', 'gpu') if cpu else ('gpu',)
  calls = functools.partial(torch_calls, make=make)
  return Peer(name, calls, ('torch', *more), platforms)


def _backend(name: str, backend: str) -> Peer:
  return _torch(name, functools.partial(sdpa_backend, backend=backend))


PEERS = (
  Peer('jax.nn', functools.partial(jax_nn, implementation='xla')),
  Peer(
    'jax.nn cudnn',
    functools.partial(jax_nn, implementation='cudnn'),
    platforms=('gpu',),
  ),
  _torch('torch sdpa', sdpa, cpu=True),
  _backend('torch flash', 'FLASH_ATTENTION'),
  _backend('torch efficient', 'EFFICIENT_ATTENTION'),
  _backend('torch cudnn', 'CUDNN_ATTENTION'),
  _backend('torch math', 'MATH'),
  _torch('torch flex', flex),
  _torch('triton split', triton_split, 'triton'),
)


def here() -> tuple[Peer, ...]:
  """Returns the peers that are raced on this platform and installed."""
  return tuple(
    peer
    for peer in PEERS
    if target() in peer.platforms and not missing(*peer.modules)
  )


def absent() -> dict[str, str]:
  """Returns why the other peers are not."""
  reasons = {}
  for peer in PEERS:
    lacking = missing(*peer.modules)
    if target() not in peer.platforms:
      reasons[peer.name] = f'not raced on {target()}'
    elif lacking:
      reasons[peer.name] = f'not installed: {", ".join(lacking)}'
  return reasons
