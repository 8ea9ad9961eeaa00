"""llama.cpp's architectures: metadata to config.json, tensors to params.

Names, and what is done to the weights, are those of llama.cpp's converter
(github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py). It keeps most tensors as
published. The exceptions: rows of Llama's queries and keys are in the order in
which llama.cpp rotates, norms of Gemma have 1 added, and gate and up of
gpt-oss, which were published in one tensor, are two.

Some settings have no key, since llama.cpp's code has them: Gemma's scale of the
scores, and which layers of Gemma 2 and gpt-oss have a window. They are those of
the published models here too.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from kvjax.checkpoints.dequantize import PublishedTensor
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.gguf.blocks import open_tensor, open_tensors
from kvjax.checkpoints.gguf.header import Header, read_header, shortest
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import TableRow, parse_table

ENDS = parse_table("""
  token_embd.weight    V D   embedding
  output_norm.weight   D     norm.weight
  output.weight        V D   head
""")
NORMS = parse_table("""
  blk.{i}.*   layers.{i}.*
    attn_norm.weight   D   attention_norm.weight
    ffn_norm.weight    D   mlp_norm.weight
""")
POST_NORMS = parse_table("""
  blk.{i}.*   layers.{i}.*
    post_attention_norm.weight   D   attention_post_norm.weight
    post_ffw_norm.weight         D   mlp_post_norm.weight
""")
HEAD_NORMS = parse_table("""
  blk.{i}.*   layers.{i}.attention.*
    attn_q_norm.weight   H   query_norm.weight
    attn_k_norm.weight   H   key_norm.weight
""")
GROUPED = parse_table("""
  blk.{i}.*   layers.{i}.attention.*
    attn_q.weight        N*H D   query
    attn_k.weight        K*H D   key
    attn_v.weight        K*H D   value
    attn_output.weight   D N*H   output
    attn_q.bias          N*H     query_bias
    attn_k.bias          K*H     key_bias
    attn_v.bias          K*H     value_bias
    attn_output.bias     D       output_bias
""")
GATED = parse_table("""
  blk.{i}.*   layers.{i}.mlp.*
    ffn_gate.weight   F D   gate
    ffn_up.weight     F D   up
    ffn_down.weight   D F   down
    ffn_gate.bias     F     gate_bias
    ffn_up.bias       F     up_bias
    ffn_down.bias     D     down_bias
""")
FUSED = parse_table("""
  blk.{i}.*   layers.{i}.*
    attn_qkv.weight      (N+K+K)*H D   attention.query    [:N*H]
    attn_qkv.weight      (N+K+K)*H D   attention.key      [N*H:(N+K)*H]
    attn_qkv.weight      (N+K+K)*H D   attention.value    [(N+K)*H:]
    attn_output.weight   D N*H         attention.output
    ffn_up.weight        2*F D         mlp.gate           [:F]
    ffn_up.weight        2*F D         mlp.up             [F:]
    ffn_down.weight      D F           mlp.down
""")
SPARSE = parse_table("""
  blk.{i}.*   layers.{i}.*
    attn_norm.weight             D             attention_norm.weight
    post_attention_norm.weight   D             mlp_norm.weight
    attn_sinks.weight            N             attention.sinks
    ffn_gate_inp.weight          experts D     experts.router
    ffn_gate_inp.bias            experts       experts.router_bias
    ffn_gate_exps.weight         experts F D   experts.gate
    ffn_up_exps.weight           experts F D   experts.up
    ffn_down_exps.weight         experts D F   experts.down
    ffn_gate_exps.bias           experts F     experts.gate_bias
    ffn_up_exps.bias             experts F     experts.up_bias
    ffn_down_exps.bias           experts D     experts.down_bias
""")
# Of a config.json, by the key of the metadata without the architecture.
KEYS = {
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attention.sliding_window': 'sliding_window',
  'attention.sliding_window_pattern': 'sliding_window_pattern',
  'attn_logit_softcapping': 'attn_logit_softcapping',
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'expert_count': 'num_local_experts',
  'expert_used_count': 'num_experts_per_tok',
  'feed_forward_length': 'intermediate_size',
  'final_logit_softcapping': 'final_logit_softcapping',
  'rope.freq_base': 'rope_theta',
  'rope.freq_base_swa': 'rope_local_base_freq',
  'vocab_size': 'vocab_size',
}
YARN_KEYS = {
  'yarn_attn_factor': 'attention_factor',
  'yarn_beta_fast': 'beta_fast',
  'yarn_beta_slow': 'beta_slow',
}
IGNORED = (
  r'rope_(freqs|factors_long|factors_short)\.weight',
  r'blk\.\d+\.attn_rot_embd(\.weight)?',
)

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One of llama.cpp's architectures.

  Attributes:
    model_type: of the published family.
    rows: of the table, with the names of the file.
    adapt: adds the settings that have no key, in this architecture.
  """

  model_type: str
  rows: tuple[TableRow, ...]
  adapt: Callable[[Header, Values], Values] = lambda header, values: {}


def open_gguf(
  path: pathlib.Path,
) -> tuple[Family, Settings, dict[str, PublishedTensor]]:
  """Returns how a file is read, its settings, and its tensors.

  Raises:
    ValueError: the file is malformed, or its architecture or a setting of it
      is not supported.
  """
  header = read_header(path)
  name = header.metadata.get('general.architecture')
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise ValueError(
      f'the architecture {name!r} is not supported; supported: '
      f'{", ".join(ARCHITECTURES)}.'
    )
  architecture = ARCHITECTURES[name]
  family = dataclasses.replace(
    FAMILIES[architecture.model_type],
    rows=architecture.rows,
    prefix='',
    ignored=IGNORED,
    copies={},
  )
  return family, read_settings(header, name), dict(open_tensors(header))


def read_settings(header: Header, name: str) -> Settings:
  """Returns the config.json that the metadata of an architecture describes."""
  architecture = ARCHITECTURES[name]
  metadata = {
    key.removeprefix(name + '.'): value
    for key, value in header.metadata.items()
    if key.startswith(name + '.')
  }
  values: Values = {'model_type': architecture.model_type}
  values |= {KEYS[key]: x for key, x in metadata.items() if key in KEYS}
  tokens = header.metadata.get('tokenizer.ggml.tokens')
  if isinstance(tokens, list):
    values.setdefault('vocab_size', len(tokens))
  values.setdefault('num_key_value_heads', values.get('num_attention_heads'))
  values.setdefault('head_dim', Settings(values).head_width())
  values['tie_word_embeddings'] = 'output.weight' not in header.entries
  _refuse(header, metadata, values)
  values |= _rope(header, metadata, values)
  return Settings(values | architecture.adapt(header, values))


def _refuse(header: Header, metadata: Values, values: Values) -> None:
  """Raises ValueError for settings that no table here covers."""
  kind = header.metadata.get('general.type', 'model')
  if kind != 'model':
    raise ValueError(f'general.type={kind!r} is no model.')
  width = metadata.get('attention.value_length', values['head_dim'])
  if width != values['head_dim'] or not metadata.get('attention.causal', True):
    raise ValueError(
      f'attention.value_length={width} differs from key_length='
      f'{values["head_dim"]}, or attention is not causal: not supported.'
    )
  if values.get('num_local_experts') and values['model_type'] != 'gpt_oss':
    raise ValueError(
      f'expert_count={values["num_local_experts"]} of the architecture '
      f'{values["model_type"]} is not supported; with experts, gpt-oss is.'
    )


def _rope(header: Header, metadata: Values, values: Values) -> Values:
  """Returns the rotation's part of a config.json."""
  width = values['head_dim']
  rotated = metadata.get('rope.dimension_count', width)
  if type(rotated) is not int or not 1 <= rotated <= width:
    raise ValueError(f'rope.dimension_count={rotated} must be 1 to {width}.')
  found: Values = {}
  if rotated != width:
    found['partial_rotary_factor'] = rotated / width
  scaling = _rope_scaling(header, metadata, rotated // 2)
  return found | ({'rope_scaling': scaling} if scaling else {})


def _rope_scaling(header: Header, metadata: Values, pairs: int) -> Values:
  """Returns `rope_scaling` of a config.json; empty where there is none.

  Args:
    header: of the file.
    metadata: of the architecture.
    pairs: features of a head that rotate together.
  """
  given = {
    key.removeprefix('rope.scaling.'): value
    for key, value in metadata.items()
    if key.startswith('rope.scaling.')
  }
  original = given.get('original_context_length')
  if 'rope_factors_long.weight' in header.entries:
    return {
      'rope_type': 'longrope',
      'long_factor': _divisors(header, 'rope_factors_long.weight', pairs),
      'short_factor': _divisors(header, 'rope_factors_short.weight', pairs),
      'original_max_position_embeddings': original,
      'attention_factor': given.get('attn_factor'),
    }
  if 'rope_freqs.weight' in header.entries:
    # The result of Llama 3.1's rule, which needs no length any more.
    divisors = _divisors(header, 'rope_freqs.weight', pairs)
    return {
      'rope_type': 'longrope',
      'long_factor': divisors,
      'short_factor': divisors,
      'attention_factor': 1.0,
    }
  factor = given.get('factor', metadata.get('rope.scale_linear'))
  kind = given.get('type', 'linear')
  if kind == 'none' or not factor:
    return {}
  found = {'rope_type': kind, 'factor': factor}
  if kind == 'yarn':
    found['original_max_position_embeddings'] = original
    found |= {YARN_KEYS[key]: x for key, x in given.items() if key in YARN_KEYS}
  return found


def _divisors(header: Header, name: str, pairs: int) -> list[float]:
  """Returns a small tensor: what each frequency is divided by."""
  entry = header.entries.get(name)
  if entry is None or entry.kind or entry.shape != (pairs,):
    raise ValueError(f'tensor {name} must have {pairs} numbers of float32.')
  return [shortest(x) for x in open_tensor(header, name).read()]


def _llama(header: Header, values: Values) -> Values:
  return {
    'attention_bias': 'blk.0.attn_q.bias' in header.entries,
    'mlp_bias': 'blk.0.ffn_up.bias' in header.entries,
  }


def _gemma(largest: int) -> Callable[[Header, Values], Values]:
  """Returns what Gemma's metadata leaves out.

  Args:
    largest: layers of the model whose scores are scaled by the width of the
      model over the heads, instead of the width of a head.
  """

  def adapt(header: Header, values: Values) -> Values:
    scalar = values['head_dim']
    if values.get('num_hidden_layers') == largest:
      settings = Settings(values)
      heads = settings.need('num_attention_heads')
      scalar = settings.need('hidden_size') // heads
    found = {'query_pre_attn_scalar': scalar}
    if not values.get('sliding_window'):  # Gemma 3; Gemma 2 has a default
      found['sliding_window_pattern'] = 1
    return found

  return adapt


def _phi3(header: Header, values: Values) -> Values:
  return {'sliding_window': values.get('sliding_window') or None}


def _gpt_oss(header: Header, values: Values) -> Values:
  scaling = values.get('rope_scaling')
  if scaling and scaling['rope_type'] == 'yarn':
    # llama.cpp rounds, and the published model does not.
    return {'rope_scaling': scaling | {'truncate': False}}
  return {}


def _shaped(
  rows: tuple[TableRow, ...], how: str, *endings: str
) -> tuple[TableRow, ...]:
  """Returns rows, those of the places with these endings transformed."""
  return tuple(
    dataclasses.replace(row, how=how) if row.place.endswith(endings) else row
    for row in rows
  )


GEMMA2 = _shaped(ENDS + NORMS + POST_NORMS, 'minus_one', 'norm.weight')
GEMMA3 = GEMMA2 + _shaped(HEAD_NORMS, 'minus_one', 'norm.weight')
ARCHITECTURES = {
  'llama': Architecture(
    'llama',
    ENDS
    + NORMS
    + _shaped(GROUPED, 'halves', '.query', '.key', '.query_bias', '.key_bias')
    + GATED,
    _llama,
  ),
  'qwen2': Architecture('qwen2', ENDS + NORMS + GROUPED + GATED),
  'qwen3': Architecture('qwen3', ENDS + NORMS + HEAD_NORMS + GROUPED + GATED),
  'gemma2': Architecture('gemma2', GEMMA2 + GROUPED + GATED, _gemma(46)),
  'gemma3': Architecture('gemma3_text', GEMMA3 + GROUPED + GATED, _gemma(62)),
  'phi3': Architecture('phi3', ENDS + NORMS + FUSED + GROUPED, _phi3),
  'gpt-oss': Architecture('gpt_oss', ENDS + SPARSE + GROUPED, _gpt_oss),
}
