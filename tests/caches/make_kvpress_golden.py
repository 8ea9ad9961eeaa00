"""Writes `kvpress.npz`: scores of kvpress 0.5.5 on a random Llama.

  pip install kvpress==0.5.5
  python tests/caches/make_kvpress_golden.py

Two layers, 4 query heads, 2 kv heads of width 16, 96 tokens, none of them
twice (equal tokens have equal keys in the first layer, and a survivor among
equals would test how ties are broken). Made with torch 2.13.0 and transformers
5.24.0, float32.
"""

import pathlib

import kvpress
import numpy as np
import torch
import transformers
from kvpress.utils import get_prerope_query_states
from transformers.models.llama.modeling_llama import rotate_half

LENGTH, LAYERS, WINDOW = 96, 2, 16
PRESSES = {
  'snapkv': kvpress.SnapKVPress(window_size=WINDOW),
  'tova': kvpress.TOVAPress(),
  'observed': kvpress.ObservedAttentionPress(),
  'key_norm': kvpress.KnormPress(),
  'key_diff': kvpress.KeyDiffPress(),
  'expected': kvpress.ExpectedAttentionPress(),
  'lagkv': kvpress.LagKVPress(lag_size=16),
  'cur': kvpress.CURPress(),
}


def main() -> None:
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=LENGTH + 1,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    initializer_range=0.3,
  )
  config._attn_implementation = 'eager'
  model = transformers.LlamaForCausalLM(config).eval()
  ids = torch.randperm(LENGTH + 1)[None, :LENGTH]
  inputs: list[dict] = []
  for block in model.model.layers:
    block.self_attn.register_forward_pre_hook(
      lambda _, args, kwargs: inputs.append(kwargs), with_kwargs=True
    )
  found: dict[str, np.ndarray] = {}
  torch.set_grad_enabled(False)
  result = model(ids, use_cache=True, output_attentions=True)
  for layer, kwargs in enumerate(inputs):
    module = model.model.layers[layer].self_attn
    module.rotary_emb = model.model.rotary_emb
    hidden = kwargs['hidden_states']
    keys = result.past_key_values.layers[layer].keys
    values = result.past_key_values.layers[layer].values
    queries = get_prerope_query_states(module, hidden)
    cos, sin = (x[:, None] for x in kwargs['position_embeddings'])
    rotated = queries * cos + rotate_half(queries) * sin
    for name, press in PRESSES.items():
      weights = result.attentions[layer] if name == 'observed' else None
      score = press.score(module, hidden, keys, values, weights, kwargs)
      found[f'{layer}.{name}'] = score.numpy()
    found[f'{layer}.keys'] = keys.numpy()
    found[f'{layer}.values'] = values.numpy()
    found[f'{layer}.queries'] = queries.numpy()
    found[f'{layer}.rotated'] = rotated.numpy()
  for ratio in (0.5, 0.75, 0.875):
    found[f'pyramid.{ratio}'] = pyramid_budgets(ratio)
  path = pathlib.Path(__file__).with_name('kvpress.npz')
  np.savez_compressed(path, **found)


def pyramid_budgets(ratio: float) -> np.ndarray:
  """Returns the budgets of 32 layers for a prompt of 4,096 tokens."""
  press = kvpress.PyramidKVPress(compression_ratio=ratio)
  module = torch.nn.Module()
  module.config = transformers.LlamaConfig(num_hidden_layers=32)
  budgets = []
  for layer in range(32):
    module.layer_idx = layer
    budgets.append(press.get_layer_budget(module, 4096))
  return np.asarray(budgets)


if __name__ == '__main__':
  main()
