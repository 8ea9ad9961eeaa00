"""DeepSeek-V3 and R1 (arXiv 2412.19437), Kimi-K2 (arXiv 2507.20534).

MLA with a rank for queries, rotary pairs interleaved; dense MLPs in the first
layers, then sigmoid-scored experts picked by groups with a correction bias,
and a shared expert. The latents' norms use 1e-6 whatever `rms_norm_eps` says.
Layers beyond `num_hidden_layers` (multi-token prediction) are left out.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import (
  ENDS,
  EXPERTS,
  GATED,
  LATENT,
  NORMS,
  SHARED,
)
from kvjax.checkpoints.variants import latent, shared_experts
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a DeepSeek-V3 config.json."""
  settings.only('scoring_func', 'sigmoid')
  settings.only('topk_method', 'noaux_tc')
  settings.only('moe_layer_freq', 1)
  dense = settings.get('first_k_dense_replace', 3)
  attention = latent(settings, settings.get('rope_interleave', True))
  sparse = sigmoid_experts(settings, scale=2.5, groups=8, top_groups=4)
  layers = [
    Layer(attention, settings.mlp() if i < dense else sparse)
    for i in range(settings.need('num_hidden_layers'))
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


def sigmoid_experts(
  settings: Settings, *, scale: float, groups: int = 1, top_groups: int = 1
) -> Experts:
  """Returns the experts of a sparse layer, with their shared one.

  Args:
    settings: of the checkpoint.
    scale, groups, top_groups: published defaults of `routed_scaling_factor`,
      `n_group` and `topk_group`.
  """
  return shared_experts(
    settings,
    score='sigmoid',
    renormalize=settings.get('norm_topk_prob', True),
    scale=settings.get('routed_scaling_factor', scale),
    correction=True,
    groups=settings.get('n_group', groups),
    top_groups=settings.get('topk_group', top_groups),
    group_score='top2',
  )


FAMILY = Family(
  config,
  ENDS + NORMS + LATENT + GATED + EXPERTS + SHARED,
  beyond_layers=True,
)
FAMILIES = {'deepseek_v3': FAMILY, 'kimi_k2': FAMILY}
