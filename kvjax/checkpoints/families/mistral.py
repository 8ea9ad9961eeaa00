"""Mistral (arXiv 2310.06825): Llama with a window in every layer.

`sliding_window: null` (since v0.2) means none; a config.json without the key
means the published default of 4096.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Mistral config.json."""
  settings.refuse('layer_types')
  width = settings.head_width()
  layer = Layer(
    Grouped(
      settings.need('num_attention_heads'),
      settings.kv_heads(8),
      width,
      rotary=rotary(settings, width),
      visibility=Visibility(window=settings.raw('sliding_window', 4096)),
    ),
    MLP(settings.need('intermediate_size'), settings.activation('hidden_act')),
  )
  return settings.model(
    [layer] * settings.need('num_hidden_layers'),
    tied=False,
    norm=Norm(settings.get('rms_norm_eps', 1e-6)),
  )


FAMILY = Family(config, LLAMA)
