"""StableLM 3B 4E1T (2023) and Stable LM 2 (arXiv 2402.17834).

LayerNorm, a quarter of each head rotated, biases on q, k and v in some sizes.
With `use_parallel_residual` attention and MLP read one norm; with
`qk_layernorm` every head of queries and keys has a norm of its own, stored as
one tensor a head (the 12B).
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig

NORMS_BY_HEAD = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_layernorm.norms.{e}.weight   H   query_norm.weight
    k_layernorm.norms.{e}.weight   H   key_norm.weight
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a StableLM config.json."""
  eps = settings.get('layer_norm_eps', 1e-5)
  by_head = settings.get('qk_layernorm', False)
  heads = settings.need('num_attention_heads')
  width = settings.divide('hidden_size', settings.need('hidden_size'), heads)
  # Published code reads it for the rotation, and not for the heads.
  settings.only('head_dim', width)
  attention = grouped(
    settings,
    width=width,
    kv_heads=32,
    rotary=rotary(settings, width, partial=0.25),
    projection_bias=settings.get('use_qkv_bias', False),
    qk_norm=Norm(eps, centered=True) if by_head else None,
    qk_norm_each=True,
  )
  parallel = settings.get('use_parallel_residual', False)
  layer = Layer(
    attention, settings.mlp(), parallel='shared' if parallel else None
  )
  return settings.model(
    [layer] * settings.need('num_hidden_layers'),
    tied=False,
    norm=Norm(eps, centered=True, bias=True),
  )


FAMILY = Family(config, LLAMA + NORMS_BY_HEAD)
