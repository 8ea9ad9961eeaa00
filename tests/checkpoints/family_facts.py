"""What tests know of a published family, and sizes that many of them share."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.checkpoints.choices import Config, Draw


class Case(NamedTuple):
  """One golden checkpoint: what its config.json says, and how it is written.

  Attributes:
    config: keys of config.json, with `model_type`.
    bytes_per_token: that a token adds to a float32 cache, by hand.
    seed: of its weights and tokens.
    old: config.json is in the older style of keys.
    shard: largest shard ('20KB'); None for one file.
    by_name: kvjax can write a config.json of the family for it, from the name
      of the family alone.
  """

  config: Config
  bytes_per_token: int
  seed: int
  old: bool = False
  shard: str | None = None
  by_name: bool = True


class Figures(NamedTuple):
  """What a published model remembers: a row of tests/memory/figures.csv.

  Attributes:
    elements: of one layer and token, as arithmetic: '2*8*128'.
    layers: of the model.
    bytes_per_token: in bfloat16, while no window is full.
    window_layers: layers that stop growing.
    window: tokens that such a layer holds.
    parameters: of the whole model, as its safetensors count them.
    source: of these figures.
  """

  elements: str
  layers: int
  bytes_per_token: int
  window_layers: int = 0
  window: int = 0
  parameters: int = 0
  source: str = ''


class Facts(NamedTuple):
  """What tests know of one family.

  Attributes:
    draw: draws keys of a config.json from the family's published space.
    cases: golden checkpoints, by name; the first has what others leave out.
    defaults: of keys that config.json may leave out (transformers).
    model_type: of drawn configs; None for the name of the family's file.
    published: figures of configs in `kvjax/models/published`, by name.
  """

  draw: Callable[[Draw], Config]
  cases: Mapping[str, Case]
  defaults: Mapping[str, Any]
  model_type: str | None = None
  published: Mapping[str, Figures] = MappingProxyType({})


def rope(kind: str = 'default', theta: float = 1e4, **values: Any) -> Any:
  return {'rope_type': kind, 'rope_theta': theta, **values}


BASE = {
  'vocab_size': 97,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'head_dim': 6,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
  'pad_token_id': None,
  'bos_token_id': None,
  'eos_token_id': None,
}
NARROW = {key: value for key, value in BASE.items() if key != 'head_dim'}
SMALL = BASE | {'num_attention_heads': 3, 'num_key_value_heads': 1}
MLA = NARROW | {
  'num_attention_heads': 3,
  'num_key_value_heads': 3,
  'kv_lora_rank': 10,
  'q_lora_rank': 14,
  'qk_nope_head_dim': 6,
  'qk_rope_head_dim': 4,
  'v_head_dim': 5,
}
ROUTED = {
  'n_routed_experts': 6,
  'n_shared_experts': 1,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 11,
  'n_group': 3,
  'topk_group': 2,
  'norm_topk_prob': True,
  'routed_scaling_factor': 1.7,
  'first_k_dense_replace': 1,
  'num_nextn_predict_layers': 0,
}
YARN = rope(
  'yarn',
  factor=8.0,
  original_max_position_embeddings=12,
  mscale=0.7,
  mscale_all_dim=0.9,
)
# Vision towers, which kvjax leaves out.
TOWER = {
  'depth': 1,
  'hidden_size': 8,
  'num_heads': 2,
  'patch_size': 2,
  'temporal_patch_size': 1,
}
GPT2 = {
  'vocab_size': 97,
  'n_embd': 30,
  'n_head': 5,
  'n_layer': 2,
  'n_positions': 32,
  'n_inner': 28,
}
MLA_DEFAULTS = {'rms_norm_eps': 1e-6, 'attention_bias': False}
ROUTED_DEFAULTS = {'n_shared_experts': 1, 'norm_topk_prob': True}
PUBLISHED_WINDOW = 4096
