"""GLM-4.7-Flash: MLA, with the layers of DeepSeek-V3.

Which layers have experts is listed in `mlp_layer_types`: by default all but
the first.
"""

from kvjax.checkpoints.families import deepseek_v3
from kvjax.checkpoints.families.deepseek_v3 import sigmoid_experts
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.variants import latent
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GLM-4 MoE Lite config.json."""
  attention = latent(
    settings, settings.get('rope_interleave', True), query_rank=768
  )
  layers = [
    Layer(
      attention,
      sigmoid_experts(settings, scale=1.8) if sparse else settings.mlp(),
    )
    for sparse in _sparse(settings)
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-5))


def _sparse(settings: Settings) -> list[bool]:
  count = settings.need('num_hidden_layers')
  dense = settings.get('first_k_dense_replace', 1)
  default = ['dense' if i < dense else 'sparse' for i in range(count)]
  kinds = settings.get('mlp_layer_types', default)
  if len(kinds) != count or set(kinds) - {'dense', 'sparse'}:
    raise ValueError(
      f"mlp_layer_types={kinds} must be {count} of 'dense' and 'sparse'."
    )
  return [kind == 'sparse' for kind in kinds]


FAMILY = Family(config, deepseek_v3.FAMILY.rows, beyond_layers=True)
