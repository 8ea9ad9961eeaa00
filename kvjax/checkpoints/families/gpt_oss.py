"""gpt-oss (arXiv 2508.10925): attention sinks, windows in every other layer.

Biases everywhere, YaRN, and experts whose gate and up projection are one
tensor, columns alternating, clamped at `swiglu_limit`.
"""

from kvjax.attention.rotary import Rotary, Yarn
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts

BASE = 150000.0

SPARSE = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    self_attn.sinks     N           attention.sinks
    mlp.router.weight   experts D   experts.router
    mlp.router.bias     experts     experts.router_bias
  model.layers.{i}.mlp.experts.*   layers.{i}.experts.*
    gate_up_proj        experts D 2*F   gate        even transpose
    gate_up_proj        experts D 2*F   up          odd transpose
    down_proj           experts F D     down        transpose
    gate_up_proj_bias   experts 2*F     gate_bias   even
    gate_up_proj_bias   experts 2*F     up_bias     odd
    down_proj_bias      experts D       down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a gpt-oss config.json."""
  layers = [
    Layer(
      grouped(
        settings,
        kv_heads=8,
        bias=settings.get('attention_bias', True),
        window=window,
        rotary=_rotary(settings, settings.head_width()),
        sinks=True,
      ),
      _experts(settings),
    )
    for window in settings.windows([SLIDING, FULL], 128)
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-5))


def _rotary(settings: Settings, width: int) -> Rotary:
  if settings.raw('rope_scaling') or settings.raw('rope_parameters'):
    return rotary(settings, width, base=BASE)
  yarn = Yarn(32.0, 4096, truncate=False)
  return Rotary(width, base=settings.get('rope_theta', BASE), scaling=yarn)


def _experts(settings: Settings) -> Experts:
  return Experts(
    settings.need('num_local_experts', 'num_experts'),
    settings.get('num_experts_per_tok', 4),
    settings.need('intermediate_size'),
    score='top_softmax',
    bias=True,
    clamp=settings.get('swiglu_limit', 7.0),
    sharpness=settings.get('swiglu_alpha', 1.702),
  )


FAMILY = Family(config, ENDS + NORMS + GROUPED + SPARSE)
