"""Gemma 3 (arXiv 2503.19786), text: five windows to one global layer.

Queries and keys are normalised head by head. Window layers rotate by another
base (`rope_local_base_freq`), and only global layers scale the rotation. Of a
model with a vision tower the decoder is read, and the tower left out.
"""

from kvjax.attention.rotary import Rotary
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.rope import has_nested_rope, rotary
from kvjax.checkpoints.shared_rows import (
  ENDS,
  FOUR_NORMS,
  GATED,
  GROUPED,
  HEAD_NORMS,
)
from kvjax.checkpoints.text_part import (
  refuse_images,
  text_family,
  text_settings,
)
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

# Published bases of the rotation.
GLOBAL = 1e6
LOCAL = 1e4
TANH = 'gelu_pytorch_tanh'


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Gemma 3 (text) config.json."""
  settings.refuse('use_bidirectional_attention', 'attn_logit_softcapping')
  settings = Settings({'num_attention_heads': 8} | dict(settings.values))
  activation = settings.activation('hidden_activation', default=TANH)
  mlp = MLP(settings.get('intermediate_size', 9216), activation)
  width = settings.get('head_dim', 256)
  norm = settings.rms_norm(1e-6, offset=1.0)
  pattern = settings.get(
    'sliding_window_pattern', settings.get('_sliding_window_pattern', 6)
  )
  default = [SLIDING] * (pattern - 1) + [FULL]
  layers = [
    Layer(
      grouped(
        settings,
        width=width,
        kv_heads=4,
        bias=settings.get('attention_bias', False),
        window=window,
        rotary=_rotary(settings, width, window),
        scale=settings.get('query_pre_attn_scalar', 256) ** -0.5,
        qk_norm=norm,
      ),
      mlp,
      norms='both',
    )
    for window in settings.windows(default, 4096)
  ]
  return settings.model(
    layers,
    tied=True,
    norm=norm,
    embedding_scale=settings.need('hidden_size') ** 0.5,
    logit_softcap=settings.raw('final_logit_softcapping'),
  )


def text_config(settings: Settings) -> ModelConfig:
  """Returns the config of the decoder of a Gemma 3 with a vision tower."""
  sizes = {'vocab_size': 262208, 'hidden_size': 2304, 'num_hidden_layers': 26}
  text = Settings(sizes | dict(text_settings(settings).values))
  return refuse_images(config(text), settings, {'image_token_index': 262144})


def _rotary(settings: Settings, width: int, window: int | None) -> Rotary:
  base = LOCAL if window else GLOBAL
  nested = has_nested_rope(settings)
  if window and not nested:
    return Rotary(width, base=settings.get('rope_local_base_freq', LOCAL))
  kind = SLIDING if window else FULL
  return rotary(settings, width, base=base, layer_type=kind)


ROWS = ENDS + FOUR_NORMS + GROUPED + HEAD_NORMS + GATED
FAMILY = Family(config, ROWS)
FAMILIES = {
  'gemma3': text_family(text_config, ROWS, 'gemma3_text'),
  'gemma3_text': FAMILY,
}
