"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): a shared expert with a gate.

The sigmoid of a learned product multiplies what the shared expert gives. With
`use_sliding_window`, every other one of the first `max_window_layers` layers
has a window.
"""

from kvjax.checkpoints.families import qwen2
from kvjax.checkpoints.family import Family, rename_rows
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.shared_rows import EXPERTS, LLAMA, SHARED
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP

SHARED_GATE = parse_table("""
  model.layers.{i}.mlp.*   layers.{i}.experts.*
    shared_expert_gate.weight   1 D   shared_gate
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen2-MoE config.json."""
  bias = settings.get('qkv_bias', True)
  dense = settings.get('mlp_only_layers', [])
  step = settings.get('decoder_sparse_step', 1)
  layers = [
    Layer(
      grouped(settings, kv_heads=16, window=window, projection_bias=bias),
      settings.mlp() if i in dense or (i + 1) % step else _experts(settings),
    )
    for i, window in enumerate(_windows(settings))
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


def _windows(settings: Settings) -> list[int | None]:
  """Returns each layer's window: Qwen2's rule with other default layers."""
  last = settings.get('max_window_layers', 28)
  has_windows = settings.get('use_sliding_window', False)
  default = [
    SLIDING if has_windows and i % 2 == 0 and i < last else FULL
    for i in range(settings.need('num_hidden_layers'))
  ]
  kinds = settings.raw('layer_types') or default
  return qwen2.windows(Settings({**settings.values, 'layer_types': kinds}))


def _experts(settings: Settings) -> Experts:
  activation = settings.activation('hidden_act')
  shared = settings.get('shared_expert_intermediate_size', 5632)
  return Experts(
    settings.get('num_experts', 60),
    settings.get('num_experts_per_tok', 4),
    settings.get('moe_intermediate_size', 1408),
    activation,
    renormalize=settings.get('norm_topk_prob', False),
    shared=MLP(shared, activation),
    shared_gate=True,
  )


OLD, NEW = (f'model.layers.{{i}}.mlp.shared_expert{s}.' for s in ('s', ''))
FAMILY = Family(
  config, LLAMA + EXPERTS + rename_rows(SHARED, OLD, NEW) + SHARED_GATE
)
