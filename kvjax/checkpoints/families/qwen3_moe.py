"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with experts, in some layers or all."""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import EXPERTS, HEAD_NORMS, LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen3-MoE config.json."""
  settings.refuse('layer_types')
  window = None
  if settings.get('use_sliding_window', False):
    window = settings.get('sliding_window', 4096)
  norm = settings.rms_norm(1e-6)
  attention = grouped(
    settings,
    kv_heads=4,
    bias=settings.get('attention_bias', False),
    window=window,
    qk_norm=norm,
  )
  experts = Experts(
    settings.get('num_experts', settings.get('num_local_experts', 128)),
    settings.get('num_experts_per_tok', 8),
    settings.need('moe_intermediate_size'),
    settings.activation('hidden_act'),
    renormalize=settings.get('norm_topk_prob', False),
  )
  dense = settings.mlp()
  dense_layers = settings.get('mlp_only_layers', [])
  step = settings.get('decoder_sparse_step', 1)
  layers = [
    Layer(attention, dense if i in dense_layers or (i + 1) % step else experts)
    for i in range(settings.need('num_hidden_layers'))
  ]
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(config, LLAMA + HEAD_NORMS + EXPERTS)
