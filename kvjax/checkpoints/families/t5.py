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

ENDS = parse_table(
  '',
  '',
  """
  shared.weight                     V D   embedding
  decoder.final_layer_norm.weight   D     norm.weight
  encoder.final_layer_norm.weight   D     encoder.norm.weight
  lm_head.weight                    V D   head
""",
)

RELATIVE = parse_table(
  'decoder.block.0.layer.0.SelfAttention.',
  '',
  """
  relative_attention_bias.weight   buckets N   relative
""",
) + parse_table(
  'encoder.block.0.layer.0.SelfAttention.',
  'encoder.',
  """
  relative_attention_bias.weight   buckets N   relative
""",
)

ENCODER = parse_table(
  'encoder.block.{i}.layer.',
  'encoder.layers.{i}.',
  """
  0.layer_norm.weight           D       attention_norm.weight
  0.SelfAttention.q.weight      N*H D   attention.query
  0.SelfAttention.k.weight      N*H D   attention.key
  0.SelfAttention.v.weight      N*H D   attention.value
  0.SelfAttention.o.weight      D N*H   attention.output
  1.layer_norm.weight           D       mlp_norm.weight
  1.DenseReluDense.wi.weight    F D     mlp.up
  1.DenseReluDense.wi_0.weight  F D     mlp.gate
  1.DenseReluDense.wi_1.weight  F D     mlp.up
  1.DenseReluDense.wo.weight    D F     mlp.down
""",
)

DECODER = parse_table(
  'decoder.block.{i}.layer.',
  'layers.{i}.',
  """
  0.layer_norm.weight           D       attention_norm.weight
  0.SelfAttention.q.weight      N*H D   attention.query
  0.SelfAttention.k.weight      N*H D   attention.key
  0.SelfAttention.v.weight      N*H D   attention.value
  0.SelfAttention.o.weight      D N*H   attention.output
  1.layer_norm.weight           D       cross_norm.weight
  1.EncDecAttention.q.weight    N*H D   cross.query
  1.EncDecAttention.k.weight    N*H D   cross.key
  1.EncDecAttention.v.weight    N*H D   cross.value
  1.EncDecAttention.o.weight    D N*H   cross.output
  2.layer_norm.weight           D       mlp_norm.weight
  2.DenseReluDense.wi.weight    F D     mlp.up
  2.DenseReluDense.wi_0.weight  F D     mlp.gate
  2.DenseReluDense.wi_1.weight  F D     mlp.up
  2.DenseReluDense.wo.weight    D F     mlp.down
""",
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
  relative = RelativeBias(
    settings.get('relative_attention_num_buckets', 32),
    settings.get('relative_attention_max_distance', 128),
    bidirectional=not causal,
  )
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
  ENDS + RELATIVE + ENCODER + DECODER,
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
