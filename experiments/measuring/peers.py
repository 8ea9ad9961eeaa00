"""Peers of kvjax. Each package is optional; its absence is reported."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.measuring import clock
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.models.config import ModelConfig
from kvjax.tree_paths import leaves_by_path

MODULES = ('torch', 'transformers', 'triton', 'llama_cpp', 'jaxlib')
PIP = {'llama_cpp': 'llama-cpp-python'}  # packages named unlike their module


def missing(*modules: str) -> list[str]:
  """Returns the packages of the modules that are not installed."""
  return [
    PIP.get(name, name)
    for name in modules
    if importlib.util.find_spec(name) is None
  ]


def why_absent(*modules: str, platforms: Sequence[str] = ('cpu', 'gpu')) -> str:
  """Returns why a peer is not raced here; '' where it is.

  Args:
    modules: that must be installed.
    platforms: where the peer is raced.
  """
  if (platform := jax.default_backend()) not in platforms:
    return f'not raced on {platform}'
  lacking = ', '.join(missing(*modules))
  return f'not installed: {lacking}' if lacking else ''


def transformers_absence() -> str:
  """Returns why transformers' model is not raced here; '' where it is."""
  return why_absent('torch', 'transformers')


def versions() -> dict[str, str]:
  """Returns the version of each package of a peer that is installed here."""
  installed = {}
  for package in (PIP.get(name, name) for name in MODULES):
    # A module may come from a distribution of another name: pytorch-triton.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      installed[package] = importlib.metadata.version(package)
  return installed


def host(result: Any) -> np.ndarray:
  """Returns a result of torch or JAX in NumPy."""
  if hasattr(result, 'detach'):
    return result.float().cpu().numpy()
  return np.asarray(result, np.float32)


def finished(results: Any) -> Any:
  """Waits for results of JAX or torch, and returns them."""
  first = results[0] if isinstance(results, list) else results
  if not hasattr(first, 'detach'):
    return jax.block_until_ready(results)
  if first.is_cuda:
    importlib.import_module('torch').cuda.synchronize()
  return results


def torch_device() -> str:
  """Returns torch's name of the device that JAX uses."""
  return 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


def torch_model(config: ModelConfig, params: Mapping[str, Any]) -> Any:
  """Returns the same model, with the same weights, of transformers."""
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')

  layer = config.layers[0]
  attention: Any = layer.attention
  make: Any = transformers.LlamaConfig
  settings = make(
    vocab_size=config.vocab_size,
    hidden_size=config.width,
    intermediate_size=layer.mlp.hidden,
    num_hidden_layers=len(config.layers),
    num_attention_heads=attention.num_heads,
    num_key_value_heads=attention.num_kv_heads,
    head_dim=attention.key_width,
    rms_norm_eps=config.norm.eps,
    max_position_embeddings=1 << 16,
    tie_word_embeddings=config.tied,
    attn_implementation='sdpa',
  )
  # The model allocates nothing ('meta'), because torch reads JAX's bytes.
  with torch.device('meta'):
    model = transformers.LlamaForCausalLM(settings).eval()
  state = {
    name: torch.from_dlpack(x) for name, x in llama_names(params).items()
  }
  model.load_state_dict(state, strict=not config.tied, assign=True)
  model.tie_weights()
  # Rotary frequencies are no weights: they stay float32 in every dtype.
  rotary = model.model.rotary_emb
  model.model.rotary_emb = type(rotary)(settings).to(torch_device())
  return model


def llama_names(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters by the names of transformers' Llama."""
  places = leaves_by_path(params)
  return {
    row.name.format(i=index): places[place]
    for index in range(len(params['layers']))
    for row in LLAMA
    if (place := row.place.format(i=index)) in places
  }


def caches() -> tuple[str, ...]:
  """Returns the kinds of cache of transformers that are raced here."""
  kinds = ('static', 'dynamic')
  # Graphs save time of a GPU's host; on a CPU compilation takes minutes.
  return (*kinds, 'compiled') if torch_device() == 'cuda' else kinds


def torch_decode(
  model: Any, kind: str, streams: Any, token: Any, slots: int, calls: int = 1
) -> Callable[[], Any]:
  """Returns a step of transformers after a context whose K and V are given.

  Args:
    model: of `torch_model`.
    kind: 'static' or 'dynamic' cache; 'compiled' is a static one, its step
      compiled and replayed as a graph.
    streams: JAX's `{'key', 'value'}` `[B, K, S, H]`, of each layer.
    token: int `[B]`.
    slots: of a static cache.
    calls: steps that are queued before one is waited for.
  """
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')

  if kind == 'dynamic':
    cache = transformers.DynamicCache(config=model.config)
  else:
    cache = transformers.StaticCache(config=model.config, max_cache_len=slots)
  for index, layer in enumerate(streams):
    key, value = (
      torch.from_dlpack(layer[name]).to(model.dtype)
      for name in ('key', 'value')
    )
    cache.update(key, value, index)
  ids = torch.from_numpy(np.array(token, np.int64))[:, None].to(model.device)
  step = model
  if kind == 'compiled':
    step = torch.compile(model, mode='reduce-overhead', dynamic=False)

  @torch.inference_mode()
  def start():
    if kind == 'compiled':
      torch.compiler.cudagraph_mark_step_begin()
    return step(ids, past_key_values=cache, use_cache=True).logits[:, -1]

  return clock.queued(start, calls, host)


def torch_prefill(
  config: ModelConfig, params: Mapping[str, Any], ids: np.ndarray
) -> Callable[[], Any]:
  """Returns transformers' prefill of ids `[1, T]`: the last token's logits."""
  torch: Any = importlib.import_module('torch')
  model = torch_model(config, params)
  tokens = torch.from_numpy(ids).to(model.device)

  @torch.inference_mode()
  def call():
    return host(model(tokens, use_cache=True, logits_to_keep=1).logits[:, -1])

  return call
