"""Mixtral (arXiv 2401.04088): Mistral with experts in every layer.

Weights of the picked experts are renormalised softmax scores. Published names
are w1 (gate), w3 (up) and w2 (down).
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts

BLOCK_SPARSE = parse_table("""
  model.layers.{i}.block_sparse_moe.*   layers.{i}.experts.*
    gate.weight             experts D   router
    experts.{e}.w1.weight   F D         gate
    experts.{e}.w3.weight   F D         up
    experts.{e}.w2.weight   D F         down
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Mixtral config.json."""
  attention = grouped(
    settings,
    kv_heads=8,
    rotary=rotary(settings, settings.head_width(), base=1e6),
    window=settings.raw('sliding_window'),
  )
  experts = Experts(
    settings.get('num_local_experts', 8),
    settings.get('num_experts_per_tok', 2),
    settings.need('intermediate_size'),
    settings.activation('hidden_act'),
  )
  layers = [Layer(attention, experts)] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-5))


FAMILY = Family(config, ENDS + NORMS + GROUPED + BLOCK_SPARSE)
