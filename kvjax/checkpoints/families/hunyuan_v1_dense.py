"""Hunyuan dense (Tencent): queries and keys are normalised after rotation.

A "dynamic" rope with `alpha` is not dynamic: it rotates by the larger base
`rope_theta * alpha^(H / (H - 2))`, whatever the length.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import replace_rope, rope_parameters
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

HEAD_NORMS = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    query_layernorm.weight   H   query_norm.weight
    key_layernorm.weight     H   key_norm.weight
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a dense Hunyuan config.json."""
  settings.refuse('mlp_bias', 'use_cla')
  settings.only('use_qk_norm', True)
  settings.only('attention_head_dim', settings.head_width())
  norm = settings.rms_norm(1e-5)
  attention = grouped(
    _without_alpha(settings),
    bias=settings.get('attention_bias', False),
    qk_norm=norm,
    qk_norm_after=True,
  )
  layers = [Layer(attention, settings.mlp())]
  return settings.model(
    layers * settings.need('num_hidden_layers'), tied=False, norm=norm
  )


def _without_alpha(settings: Settings) -> Settings:
  """Returns settings whose base has the factor that `alpha` stands for.

  The other keys of such rope parameters are read by no published code.
  """
  rope = rope_parameters(settings)
  alpha = Settings(rope).get('alpha', 0.0)
  if not alpha or rope.get('rope_type', rope.get('type')) != 'dynamic':
    return settings
  width = settings.head_width()
  if width < 4:
    raise ValueError(
      f'head_dim={width} is too narrow for alpha={alpha} of rope_scaling: its '
      'base is a power of alpha with head_dim - 2 below. Heads have 4 or more.'
    )
  theta = Settings({**settings.values, **rope}).get('rope_theta', 1e4)
  base = theta * alpha ** (width / (width - 2))
  return replace_rope(settings, {'rope_type': 'default', 'rope_theta': base})


FAMILY = Family(config, LLAMA + HEAD_NORMS)
