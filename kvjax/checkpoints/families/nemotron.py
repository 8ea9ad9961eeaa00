"""Nemotron-4 (arXiv 2402.16819, 2406.11704) and Minitron (arXiv 2407.14679).

LayerNorm whose stored weight has 1 less, MLPs of a squared ReLU without a
gate, and half of each head rotated.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Nemotron config.json."""
  attention = grouped(
    settings,
    rotary=rotary(settings, settings.head_width(), partial=0.5),
    bias=settings.get('attention_bias', False),
  )
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act', default='relu2'),
    gated=False,
    bias=settings.get('mlp_bias', False),
  )
  eps = settings.get('norm_eps', 1e-5)
  return settings.model(
    [Layer(attention, mlp)] * settings.need('num_hidden_layers'),
    tied=False,
    norm=Norm(eps, centered=True, bias=True, offset=1.0),
  )


FAMILY = Family(config, LLAMA)
