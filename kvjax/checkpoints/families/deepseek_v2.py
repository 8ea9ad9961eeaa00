"""DeepSeek-V2 and V2-Lite (arXiv 2405.04434): MLA, softmax-scored experts.

Lite has no rank for queries. Picked weights are not renormalised.
"""

from kvjax.checkpoints.families import deepseek_v3
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.variants import latent, shared_experts
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts

METHODS = ('greedy', 'group_limited_greedy')


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a DeepSeek-V2 config.json."""
  settings.only('scoring_func', 'softmax')
  settings.only('topk_method', *METHODS)
  settings.only('moe_layer_freq', 1)
  # The two published implementations disagree about the meaning of True.
  settings.only('norm_topk_prob', False)
  attention = latent(settings, interleaved=True)
  bias = settings.get('mlp_bias', False)
  dense = settings.mlp(bias)
  first = settings.get('first_k_dense_replace', 0)
  layers = [
    Layer(attention, dense if i < first else _experts(settings, bias))
    for i in range(settings.need('num_hidden_layers'))
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


def _experts(settings: Settings, bias: bool) -> Experts:
  is_grouped = settings.get('topk_method', 'greedy') != 'greedy'
  return shared_experts(
    settings,
    shared=2,
    bias=bias,
    renormalize=False,
    scale=settings.get('routed_scaling_factor', 1.0),
    groups=settings.need('n_group') if is_grouped else 1,
    top_groups=settings.need('topk_group') if is_grouped else 1,
  )


FAMILY = Family(config, deepseek_v3.FAMILY.rows)
