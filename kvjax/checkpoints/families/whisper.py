"""Whisper (arXiv 2212.04356): convolved log-mel frames, encoder and decoder.

Key projections have no bias. The encoder's sinusoids are stored as a table.
No published implementation reads `scale_embedding`, and kvjax does not either.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility

ENDS = """
  proj_out.weight   V D   head
  model.decoder.*   *
    embed_tokens.weight      V D           embedding
    embed_positions.weight   positions D   positions
    layer_norm.weight        D             norm.weight
    layer_norm.bias          D             norm.bias
  model.encoder.*   encoder.*
    embed_positions.weight   source_positions D   positions
    layer_norm.weight        D                    norm.weight
    layer_norm.bias          D                    norm.bias
    conv1.weight             D features 3         conv_0        kernel
    conv1.bias               D                    conv_0_bias
    conv2.weight             D D 3                conv_1        kernel
    conv2.bias               D                    conv_1_bias
"""

LAYER = """
    self_attn_layer_norm.weight   D     attention_norm.weight
    self_attn_layer_norm.bias     D     attention_norm.bias
    final_layer_norm.weight       D     mlp_norm.weight
    final_layer_norm.bias         D     mlp_norm.bias
    fc1.weight                    F D   mlp.up
    fc1.bias                      F     mlp.up_bias
    fc2.weight                    D F   mlp.down
    fc2.bias                      D     mlp.down_bias
"""
CROSS_NORM = """
    encoder_attn_layer_norm.weight   D   cross_norm.weight
    encoder_attn_layer_norm.bias     D   cross_norm.bias
"""
ATTENTION = """
    q_proj.weight     N*H D   query
    q_proj.bias       N*H     query_bias
    k_proj.weight     N*H D   key
    -                 N*H     key_bias
    v_proj.weight     N*H D   value
    v_proj.bias       N*H     value_bias
    out_proj.weight   D N*H   output
    out_proj.bias     D       output_bias
"""
ROWS = parse_table(
  ENDS
  + 'model.encoder.layers.{i}.*   encoder.layers.{i}.*'
  + LAYER
  + 'model.encoder.layers.{i}.self_attn.*   encoder.layers.{i}.attention.*'
  + ATTENTION
  + 'model.decoder.layers.{i}.*   layers.{i}.*'
  + LAYER
  + 'model.decoder.layers.{i}.*   layers.{i}.*'
  + CROSS_NORM
  + 'model.decoder.layers.{i}.self_attn.*   layers.{i}.attention.*'
  + ATTENTION
  + 'model.decoder.layers.{i}.encoder_attn.*   layers.{i}.cross.*'
  + ATTENTION
)


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Whisper config.json."""
  norm = Norm(1e-5, centered=True, bias=True)
  encoder = Layer(
    _attention(settings, 'encoder', False), _mlp(settings, 'encoder')
  )
  decoder = Layer(
    _attention(settings, 'decoder', True),
    _mlp(settings, 'decoder'),
    cross=_attention(settings, 'decoder', False),
  )
  return settings.model(
    [decoder] * settings.need('decoder_layers'),
    tied=True,
    norm=norm,
    positions=settings.get('max_target_positions', 448),
    encoder=Encoder(
      (encoder,) * settings.need('encoder_layers'),
      features=settings.get('num_mel_bins', 80),
      positions=settings.get('max_source_positions', 1500),
      norm=norm,
    ),
  )


def _attention(settings: Settings, stack: str, causal: bool) -> Grouped:
  heads = settings.need(f'{stack}_attention_heads')
  return Grouped(
    heads,
    heads,
    settings.divide('d_model', settings.need('d_model'), heads),
    visibility=Visibility(causal=causal),
    projection_bias=True,
    output_bias=True,
  )


def _mlp(settings: Settings, stack: str) -> MLP:
  return MLP(
    settings.need(f'{stack}_ffn_dim'),
    settings.activation('activation_function', default='gelu'),
    gated=False,
    bias=True,
  )


FAMILY = Family(
  config,
  ROWS,
  copies={'proj_out.weight': 'model.decoder.embed_tokens.weight'},
)
