"""Attention of peers, for one token a row over full keys and values.

A peer takes queries `[B, K, G, 1, H]`, keys and values `[B, K, S, H]` and lays
them out as it prefers before time runs. torch reads the same bytes as JAX. Some
backends of torch have no form for several query heads a kv head; these heads
become G rows of queries. One token sees all keys, so no mask distinguishes rows
from heads, and keys are read once.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.measuring import clock
from experiments.measuring.peers import torch_device, why_absent
from kvjax.context import target

Backend = Literal['xla', 'cudnn']
Inputs = tuple[jax.Array, jax.Array, jax.Array]  # queries, keys, values


@dataclasses.dataclass(frozen=True)
class Peer:
  """One way to attend.

  Attributes:
    name: in results.
    make: takes several queries, keys and values in the dtype that is measured;
      returns a call that attends to all of them, one after the other.
    modules: that must be installed.
    platforms: where it is raced.
  """

  name: str
  make: Callable[[Sequence[Inputs]], clock.Call]
  modules: tuple[str, ...] = ()
  platforms: tuple[str, ...] = ('cpu', 'gpu')

  @property
  def absence(self) -> str:
    """Why the peer is not raced here; '' where it is."""
    return why_absent(*self.modules, platforms=self.platforms)


def jax_calls(
  parts: Sequence[Inputs],
  make: Callable[[jax.Array, Sequence[Any]], clock.Call],
) -> clock.Call:
  """Returns attention of `jax.nn`, keys and values laid out as it needs them.

  Args:
    parts: queries, keys and values.
    make: of `clock.chained`.
  """
  query = parts[0][0]
  caches = [
    [jnp.array(jnp.swapaxes(x, 1, 2)) for x in streams] for _, *streams in parts
  ]
  # One program for each cache on a CPU: the function repeats keys for every
  # query head there, and a program of several caches would keep all of them.
  groups = [[cache] for cache in caches] if target() == 'cpu' else [caches]
  calls = [make(query, group) for group in groups]
  return lambda: [output for call in calls for output in call()]


def jax_nn(query: jax.Array, cache: Any, implementation: Backend) -> jax.Array:
  """Returns `jax.nn.dot_product_attention` of queries `[B, K, G, 1, H]`."""
  rows = query.reshape(query.shape[0], 1, -1, query.shape[-1])
  out = jax.nn.dot_product_attention(
    rows, *cache, implementation=implementation
  )
  return out.reshape(query.shape)


def torch_calls(
  parts: Sequence[Inputs], make: Callable[[Any], Any]
) -> clock.Call:
  """Returns a torch function of each q, k, v; replayed as a graph on a GPU.

  Args:
    parts: queries, keys and values.
    make: takes the module torch; returns a function of three tensors of the
      shapes of `parts`.
  """
  torch: Any = importlib.import_module('torch')
  tensors = [[torch.from_dlpack(x) for x in part] for part in parts]
  attend = make(torch)

  @torch.inference_mode()
  def call():
    return [attend(q, k, v).reshape(q.shape) for q, k, v in tensors]

  return captured(torch, call) if torch_device() == 'cuda' else call


def captured(torch: Any, call: clock.Call) -> clock.Call:
  """Returns the replay of what a call launches, without Python's time."""
  stream = torch.cuda.Stream()
  stream.wait_stream(torch.cuda.current_stream())
  with torch.cuda.stream(stream):
    # Compilation, tuning and allocation happen before the capture.
    for _ in range(3):
      call()
  torch.cuda.current_stream().wait_stream(stream)
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    results = call()

  def replay():
    graph.replay()
    return results

  return replay


def sdpa(torch: Any) -> Any:
  """Returns torch's attention by the backend that torch chooses."""
  return _by_heads(torch.nn.functional.scaled_dot_product_attention)


def _by_heads(attend: Any) -> Any:
  """Returns attention of `[B, K, G, 1, H]` by a function of `[B, N, T, H]`."""

  def call(q, k, v):
    query = q.reshape(q.shape[0], -1, 1, q.shape[-1])
    return attend(query, k, v, enable_gqa=q.shape[2] > 1)

  return call


def sdpa_backend(torch: Any, backend: str) -> Any:
  """Returns torch's attention by one backend, which torch may refuse."""
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
  return _by_heads(attend)


def triton_split(torch: Any) -> Any:
  """Returns the split-KV kernel of `triton_decode`."""
  del torch
  room = importlib.import_module('experiments.measuring.triton_decode')
  return lambda q, k, v: room.attend(q[:, :, :, 0], k, v)


def _jax(name: str, implementation: Backend, *platforms: str) -> Peer:
  attend = functools.partial(jax_nn, implementation=implementation)
  make = clock.chained(attend)
  return Peer(name, functools.partial(jax_calls, make=make), (), platforms)


def _torch(name: str, make: Any, *more: str, cpu: bool = False) -> Peer:
  platforms = ('cpu', 'gpu') if cpu else ('gpu',)
  calls = functools.partial(torch_calls, make=make)
  return Peer(name, calls, ('torch', *more), platforms)


def _backend(name: str, backend: str) -> Peer:
  return _torch(name, functools.partial(sdpa_backend, backend=backend))


PEERS = (
  _jax('jax.nn', 'xla', 'cpu', 'gpu'),
  _jax('jax.nn cudnn', 'cudnn', 'gpu'),
  _torch('torch sdpa', sdpa, cpu=True),
  _backend('torch flash', 'FLASH_ATTENTION'),
  _backend('torch efficient', 'EFFICIENT_ATTENTION'),
  _backend('torch cudnn', 'CUDNN_ATTENTION'),
  _backend('torch math', 'MATH'),
  _torch('torch flex', flex),
  _torch('triton split', triton_split, 'triton'),
)
