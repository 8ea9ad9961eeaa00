"""Arcee's AFM (2025): Llama whose MLP has squared ReLU and no gate."""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an Arcee config.json."""
  attention = grouped(settings, bias=settings.get('attention_bias', False))
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act', default='relu2'),
    gated=False,
    bias=settings.get('mlp_bias', False),
  )
  layers = [Layer(attention, mlp)] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-5))


FAMILY = Family(config, LLAMA)
