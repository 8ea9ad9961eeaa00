"""What else one could use. Each is optional, and named where it is absent."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.models.config import ModelConfig

MODULES = {'torch': 'torch', 'transformers': 'transformers'}


def absent() -> list[str]:
  """Returns the peers that are not installed."""
  find = importlib.util.find_spec
  return [name for name, module in MODULES.items() if find(module) is None]


def host(result: Any) -> np.ndarray:
  """Returns a peer's result, or ours, in NumPy."""
  if hasattr(result, 'detach'):
    return result.float().cpu().numpy()
  return np.asarray(result, np.float32)


def finished(results: Any) -> Any:
  """Waits for results of JAX or torch, whichever they are, and returns them."""
  first = results[0] if isinstance(results, list) else results
  if not hasattr(first, 'detach'):
    return jax.block_until_ready(results)
  if first.is_cuda:
    importlib.import_module('torch').cuda.synchronize()
  return results


def torch_device() -> str:
  """Returns torch's name of the device that JAX uses."""
  return 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


def torch_attention(q: Any, k: Any, v: Any, dtype: str) -> Callable[[], Any]:
  """Returns torch's SDPA of `[B, K, G, 1, H]` over `[B, K, S, H]`."""
  torch: Any = importlib.import_module('torch')

  def tensor(x):
    x = torch.from_numpy(np.array(x, np.float32))
    return x.to(torch_device(), getattr(torch, dtype))

  batch, heads, groups, _, width = q.shape
  query = tensor(q).reshape(batch, heads * groups, 1, width)
  key, value = tensor(k), tensor(v)
  attend = torch.nn.functional.scaled_dot_product_attention

  def call():
    with torch.inference_mode():
      out = attend(query, key, value, enable_gqa=groups > 1)
      return out.reshape(q.shape)

  return call


def jax_nn_attention(drawn: Sequence[Any]) -> Callable[[], Any]:
  """Returns `jax.nn.dot_product_attention` of several q, k, v, in one call.

  Shapes as in `torch_attention`; keys and values are laid out beforehand as
  that function asks.
  """

  def laid_out(q, k, v):
    batch, heads, groups, _, width = q.shape
    query = q.reshape(batch, 1, heads * groups, width).astype(k.dtype)
    return query, *(jnp.array(jnp.swapaxes(x, 1, 2)) for x in (k, v))

  shape = drawn[0][0].shape

  @jax.jit
  def attend(given):
    found = [jax.nn.dot_product_attention(*each) for each in given]
    return [out.reshape(shape) for out in found]

  given = [laid_out(*each) for each in drawn]
  return lambda: attend(given)


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
  model = transformers.LlamaForCausalLM(settings).eval()
  state = {
      name: torch.from_numpy(np.array(x, np.float32))
      for name, x in _llama_names(params).items()
  }
  model.load_state_dict(state, strict=not config.tied)
  return model.to(torch_device(), getattr(torch, config.dtype))


def _llama_names(params: Mapping[str, Any]) -> dict[str, Any]:
  names = {
      'model.embed_tokens.weight': params['embedding'],
      'model.norm.weight': params['norm']['weight'],
  }
  if 'head' in params:
    names['lm_head.weight'] = params['head']
  for index, layer in enumerate(params['layers']):
    at = f'model.layers.{index}.'
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      names[f'{at}self_attn.{theirs}_proj.weight'] = layer['attention'][ours]
    names[f'{at}self_attn.o_proj.weight'] = layer['attention']['output']
    for name in ('gate', 'up', 'down'):
      names[f'{at}mlp.{name}_proj.weight'] = layer['mlp'][name]
    names[f'{at}input_layernorm.weight'] = layer['attention_norm']['weight']
    names[f'{at}post_attention_layernorm.weight'] = layer['mlp_norm']['weight']
  return names


def torch_decode(
    model: Any, kind: str, streams: Any, token: Any, room: int
) -> Callable[[], Any]:
  """Returns a step of transformers after a context whose K and V are given.

  Args:
    model: of `torch_model`.
    kind: 'static' or 'dynamic' cache.
    streams: `{'key', 'value'}` `[B, K, S, H]`, of each layer.
    token: int `[B]`.
    room: slots of a static cache.
  """
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')

  if kind == 'static':
    cache = transformers.StaticCache(config=model.config, max_cache_len=room)
  else:
    cache = transformers.DynamicCache(config=model.config)
  for index, layer in enumerate(streams):
    key, value = (
        torch.from_numpy(np.array(layer[name])).to(model.device, model.dtype)
        for name in ('key', 'value')
    )
    cache.update(key, value, index)
  ids = torch.from_numpy(np.array(token, np.int64))[:, None].to(model.device)

  def call():
    with torch.inference_mode():
      out = model(ids, past_key_values=cache, use_cache=True)
      return out.logits[:, -1].float().cpu().numpy()

  return call
