"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with experts, in some layers or all."""

from kvjax.checkpoints.families.qwen3 import attention
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import EXPERTS, HEAD_NORMS, LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen3-MoE config.json."""
  settings.refuse('layer_types')
  window = None
  if settings.get('use_sliding_window', False):
    window = settings.get('sliding_window', 4096)
  variant = attention(
    settings, window, settings.head_width(), settings.kv_heads(4)
  )
  layers = [Layer(variant, mlp) for mlp in _mlps(settings)]
  norm = Norm(settings.get('rms_norm_eps', 1e-6))
  return settings.model(layers, tied=False, norm=norm)


def _mlps(settings: Settings) -> list[MLP | Experts]:
  activation = settings.activation('hidden_act')
  dense = MLP(settings.need('intermediate_size'), activation)
  experts = Experts(
    settings.get('num_experts', settings.get('num_local_experts', 128)),
    settings.get('num_experts_per_tok', 8),
    settings.need('moe_intermediate_size'),
    activation,
    renormalize=settings.get('norm_topk_prob', False),
  )
  plain = settings.get('mlp_only_layers', [])
  step = settings.get('decoder_sparse_step', 1)
  return [
    dense if i in plain or (i + 1) % step else experts
    for i in range(settings.need('num_hidden_layers'))
  ]


FAMILY = Family(config, LLAMA + HEAD_NORMS + EXPERTS)
