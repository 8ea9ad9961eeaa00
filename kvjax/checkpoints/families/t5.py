"""T5 (arXiv 1910.10683), T5 1.1 and Flan-T5: encoder and decoder.

A relative bias that the layers of a stack share, no scale of scores, RMSNorm.
`tie_word_embeddings: false` (1.1, Flan) also means that the decoder's output
is not scaled; where such a checkpoint has no head, the embedding is the head.
"""

from kvjax.attention.bias import RelativeBias
from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility

SELF = """
  layer_norm.weight        D       attention_norm.weight
  SelfAttention.q.weight   N*H D   attention.query
  SelfAttention.k.weight   N*H D   attention.key
  SelfAttention.v.weight   N*H D   attention.value
  SelfAttention.o.weight   D N*H   attention.output
"""
CROSS = """
  layer_norm.weight          D       cross_norm.weight
  EncDecAttention.q.weight   N*H D   cross.query
  EncDecAttention.k.weight   N*H D   cross.key
  EncDecAttention.v.weight   N*H D   cross.value
  EncDecAttention.o.weight   D N*H   cross.output
"""
DENSE = """
  layer_norm.weight            D     mlp_norm.weight
  DenseReluDense.wi.weight     F D   mlp.up
  DenseReluDense.wi_0.weight   F D   mlp.gate
  DenseReluDense.wi_1.weight   F D   mlp.up
  DenseReluDense.wo.weight     D F   mlp.down
"""
ENDS = """
  shared.weight                     V D   embedding
  decoder.final_layer_norm.weight   D     norm.weight
  encoder.final_layer_norm.weight   D     encoder.norm.weight
  lm_head.weight                    V D   head
  encoder.block.0.layer.0.SelfAttention.*   encoder.*
    relative_attention_bias.weight   buckets N   relative
  decoder.block.0.layer.0.SelfAttention.*   *
    relative_attention_bias.weight   buckets N   relative
"""
ROWS = parse_table(
  ENDS
  + 'encoder.block.{i}.layer.0.*   encoder.layers.{i}.*'
  + SELF
  + 'encoder.block.{i}.layer.1.*   encoder.layers.{i}.*'
  + DENSE
  + 'decoder.block.{i}.layer.0.*   layers.{i}.*'
  + SELF
  + 'decoder.block.{i}.layer.1.*   layers.{i}.*'
  + CROSS
  + 'decoder.block.{i}.layer.2.*   layers.{i}.*'
  + DENSE
)


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a T5 config.json."""
  mlp = _mlp(settings)
  norm = Norm(settings.get('layer_norm_epsilon', 1e-6))
  count = settings.need('num_layers')
  encoder = Layer(_attention(settings, causal=False), mlp)
  decoder = Layer(
    _attention(settings, causal=True),
    mlp,
    cross=_attention(settings, causal=False, bias=False),
  )
  tied = settings.get('tie_word_embeddings', True)
  scaled = settings.get('scale_decoder_outputs', tied)
  return settings.model(
    [decoder] * settings.get('num_decoder_layers', count),
    tied=True,
    norm=norm,
    logit_scale=settings.need('d_model') ** -0.5 if scaled else 1.0,
    encoder=Encoder((encoder,) * count, norm=norm),
  )


def _attention(settings: Settings, causal: bool, bias: bool = True) -> Grouped:
  heads = settings.need('num_heads')
  buckets = settings.get('relative_attention_num_buckets', 32)
  distance = settings.get('relative_attention_max_distance', 128)
  # Half of the buckets of a direction hold one distance each. An encoder has
  # two directions, so four buckets are the fewest.
  if not 2 <= buckets // 2 < distance:
    raise ValueError(
      f'relative_attention_max_distance={distance} must exceed half of '
      f'relative_attention_num_buckets={buckets}, which must be at least 4.'
    )
  relative = RelativeBias(buckets, distance, bidirectional=not causal)
  return Grouped(
    heads,
    heads,
    settings.need('d_kv'),
    visibility=Visibility(causal=causal),
    scale=1.0,
    bias=relative if bias else None,
  )


def _mlp(settings: Settings) -> MLP:
  """Returns the MLP.

  Newer releases write the parts of `feed_forward_proj` as keys too
  (`dense_act_fn`, `is_gated_act`), and these keys win.
  """
  name = settings.get('feed_forward_proj', 'relu')
  gated, _, act = name.rpartition('-')
  if gated not in ('', 'gated'):
    raise ValueError(
      f"feed_forward_proj={name!r} must be an activation, or 'gated-' and an "
      'activation.'
    )
  # The published class reads `gated-gelu` as the tanh approximation.
  act = 'gelu_new' if name == 'gated-gelu' else act
  named = {'dense_act_fn': settings.raw('dense_act_fn')}
  named |= {'feed_forward_proj': act}
  return MLP(
    settings.need('d_ff'),
    Settings(named).activation('dense_act_fn', 'feed_forward_proj'),
    gated=settings.get('is_gated_act', bool(gated)),
  )


FAMILY = Family(
  config,
  ROWS,
  ignored=(
    r'decoder\.block\.0\.layer\.1\.EncDecAttention\.'
    r'relative_attention_bias\.weight',
  ),
  copies={
    'encoder.embed_tokens.weight': 'shared.weight',
    'decoder.embed_tokens.weight': 'shared.weight',
    'lm_head.weight': 'shared.weight',
  },
  head='lm_head.weight',
)
