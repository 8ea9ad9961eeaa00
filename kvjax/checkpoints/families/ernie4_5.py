"""ERNIE 4.5 without experts (2025): Llama with interleaved rotary pairs.

`use_bias` gives every projection a bias.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an ERNIE 4.5 config.json."""
  width = settings.head_width(128)
  bias = settings.get('use_bias', False)
  attention = grouped(
    settings,
    width=width,
    kv_heads=2,
    bias=bias,
    rotary=rotary(settings, width, base=5e5, interleaved=True),
  )
  layers = [Layer(attention, settings.mlp(bias=bias))]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=True,
    norm=settings.rms_norm(1e-5),
  )


FAMILY = Family(config, LLAMA)
