"""Granite 3 with experts (arXiv 2408.13359): Granite, experts in every layer.

Scores of the picked experts alone are softmaxed. Gate and up projection of all
experts are one tensor.
"""

from kvjax.checkpoints.families.granite import attention, multipliers
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts

FUSED = parse_table("""
  model.layers.{i}.block_sparse_moe.*   layers.{i}.experts.*
    router.layer.weight    experts D       router
    input_linear.weight    experts 2*F D   gate     transpose [::F] transpose
    input_linear.weight    experts 2*F D   up       transpose [:F:] transpose
    output_linear.weight   experts D F     down
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GraniteMoe config.json."""
  experts = Experts(
    settings.get('num_local_experts', 8),
    settings.get('num_experts_per_tok', 2),
    settings.need('intermediate_size'),
    settings.activation('hidden_act'),
    score='top_softmax',
  )
  layers = [Layer(attention(settings), experts)]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=False,
    norm=settings.rms_norm(1e-6),
    **multipliers(settings),
  )


FAMILY = Family(config, ENDS + NORMS + GROUPED + FUSED)
