"""llama.cpp's architectures: metadata to config.json, tensors to params.

Names, and what is done to the weights, are those of llama.cpp's converter
(github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py). It keeps most tensors as
published, so the tables here are those of the published families with other
names. The exceptions: rows of Llama's queries and keys are in the order in
which llama.cpp rotates, norms of Gemma have 1 added, and gate and up of
gpt-oss, which were published in one tensor, are two.

Some settings have no key, since llama.cpp's code has them: Gemma's scale of the
scores, and which layers of Gemma 2 and gpt-oss have a window. They are those of
the published models here too.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from kvjax.checkpoints.dequantize import PublishedTensor
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.gguf.blocks import open_tensors
from kvjax.checkpoints.gguf.header import read_header, shortest
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import ORIGINAL
from kvjax.checkpoints.shared_rows import GROUPED
from kvjax.checkpoints.table import TableRow, parse_table

# Parts of published names, replaced one after another.
NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'model.layers': 'blk',
  'input_layernorm': 'attn_norm',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.o_proj': 'attn_output',
  'self_attn.sinks': 'attn_sinks.weight',
  'self_attn.': 'attn_',
  'mlp.gate_up_proj': 'ffn_up',
  'mlp.router': 'ffn_gate_inp',
  'mlp.': 'ffn_',
  '_proj': '',
}
EXPERTS = parse_table("""
  blk.{i}.*   layers.{i}.experts.*
    ffn_gate_exps.weight   experts F D   gate
    ffn_up_exps.weight     experts F D   up
    ffn_down_exps.weight   experts D F   down
    ffn_gate_exps.bias     experts F     gate_bias
    ffn_up_exps.bias       experts F     up_bias
    ffn_down_exps.bias     experts D     down_bias
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
# Of its rope_scaling, and those of YaRN alone.
SCALING_KEYS = {
  'rope.scale_linear': 'factor',
  'rope.scaling.factor': 'factor',
  'rope.scaling.type': 'rope_type',
}
YARN_KEYS = {
  'rope.scaling.original_context_length': ORIGINAL,
  'rope.scaling.yarn_attn_factor': 'attention_factor',
  'rope.scaling.yarn_beta_fast': 'beta_fast',
  'rope.scaling.yarn_beta_slow': 'beta_slow',
}
IGNORED = (
  r'rope_(freqs|factors_long|factors_short)\.weight',
  r'blk\.\d+\.attn_rot_embd(\.weight)?',
)

Values = Mapping[str, Any]
Tensors = Mapping[str, PublishedTensor]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One of llama.cpp's architectures.

  Attributes:
    model_type: of the published family.
    post_norm: name of the norm behind attention, or of that before the MLP
      where there is no other.
    places: pattern of the params whose tensors are transformed.
    how: they are transformed.
    largest: layers of the one model whose scores are scaled by the width of the
      model over the heads, instead of the width of a head.
  """

  model_type: str
  post_norm: str = 'ffn_norm'
  places: str = ''
  how: str = ''
  largest: int = 0

  def family(self) -> Family:
    """Returns the published family with the names of the file."""
    published = FAMILIES[self.model_type]
    # llama.cpp reads projections that were published as one in three as well.
    rows = EXPERTS + tuple(map(self._rename, published.rows + GROUPED))
    return dataclasses.replace(
      published, rows=rows, prefix='', ignored=IGNORED, copies={}
    )

  def _rename(self, row: TableRow) -> TableRow:
    name = row.name.replace('post_attention_layernorm', self.post_norm)
    for old, new in NAMES.items():
      name = name.replace(old, new)
    how = self.how if re.fullmatch(self.places, row.place) else row.how
    return dataclasses.replace(row, name=name, how=how)


POST_NORM = 'post_attention_norm'
NORMS = r'.*norm\.weight'
ARCHITECTURES = {
  'llama': Architecture(
    'llama', places=r'.*\.(query|key)(_bias)?', how='halves'
  ),
  'qwen2': Architecture('qwen2'),
  'qwen3': Architecture('qwen3'),
  'gemma2': Architecture('gemma2', POST_NORM, NORMS, 'minus_one', largest=46),
  'gemma3': Architecture(
    'gemma3_text', POST_NORM, NORMS, 'minus_one', largest=62
  ),
  'phi3': Architecture('phi3'),
  'gpt-oss': Architecture('gpt_oss', POST_NORM),
}


def open_gguf(path: pathlib.Path) -> tuple[Family, Settings, Tensors]:
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
  tensors = open_tensors(header)
  settings = read_settings(header.metadata, tensors)
  return ARCHITECTURES[name].family(), settings, tensors


def read_settings(metadata: Values, tensors: Tensors) -> Settings:
  """Returns the config.json that metadata and names of tensors describe."""
  name = metadata['general.architecture']
  architecture = ARCHITECTURES[name]
  special = {
    key.removeprefix(name + '.'): value
    for key, value in metadata.items()
    if key.startswith(name + '.')
  }
  tokens = metadata.get('tokenizer.ggml.tokens')
  values = {
    'model_type': architecture.model_type,
    'tie_word_embeddings': 'output.weight' not in tensors,
    'attention_bias': 'blk.0.attn_q.bias' in tensors,
    'mlp_bias': 'blk.0.ffn_up.bias' in tensors,
    'vocab_size': len(tokens) if isinstance(tokens, list) else None,
  } | _pick(KEYS, special)
  values.setdefault('num_key_value_heads', values.get('num_attention_heads'))
  values.setdefault('head_dim', Settings(values).head_width())
  _refuse(metadata.get('general.type', 'model'), special, values)
  values['query_pre_attn_scalar'] = values['head_dim']
  if values.get('num_hidden_layers') == architecture.largest:
    settings = Settings(values)
    heads = settings.need('num_attention_heads')
    values['query_pre_attn_scalar'] = settings.need('hidden_size') // heads
  if not values.get('sliding_window', 1):
    values['sliding_window'] = None
  if values.get('sliding_window') is None:
    values['sliding_window_pattern'] = 1
  return Settings(values | _rope(special, values, tensors))


def _pick(keys: Mapping[str, str], metadata: Values) -> dict[str, Any]:
  """Returns the values of some keys, by their names in a config.json."""
  return {keys[key]: x for key, x in metadata.items() if key in keys}


def _refuse(kind: Any, special: Values, values: Values) -> None:
  """Raises ValueError for settings that no table here covers."""
  if kind != 'model':
    raise ValueError(f'general.type={kind!r} is no model.')
  width = special.get('attention.value_length', values['head_dim'])
  if width != values['head_dim'] or not special.get('attention.causal', True):
    raise ValueError(
      f'attention.value_length={width} differs from key_length='
      f'{values["head_dim"]}, or attention is not causal: not supported.'
    )
  if values.get('num_local_experts') and values['model_type'] != 'gpt_oss':
    raise ValueError(
      f'expert_count={values["num_local_experts"]} of the architecture '
      f'{values["model_type"]} is not supported; with experts, gpt-oss is.'
    )


def _rope(special: Values, values: Values, tensors: Tensors) -> dict[str, Any]:
  """Returns the rotation's part of a config.json.

  Args:
    special: metadata of the architecture.
    values: of the config.json so far.
    tensors: of the file.
  """
  width = values['head_dim']
  rotated = special.get('rope.dimension_count', width)
  if type(rotated) is not int or not 1 <= rotated <= width:
    raise ValueError(f'rope.dimension_count={rotated} must be 1 to {width}.')
  scaling = _divisors(special, tensors, rotated // 2)
  if not scaling:
    scaling = {'rope_type': 'linear'} | _pick(SCALING_KEYS, special)
    if scaling['rope_type'] == 'none' or not scaling.get('factor'):
      scaling = {}
    elif scaling['rope_type'] == 'yarn':
      scaling |= _pick(YARN_KEYS, special)
      # llama.cpp rounds, and the published gpt-oss does not.
      scaling['truncate'] = values['model_type'] != 'gpt_oss'
  rope: dict[str, Any] = {'rope_scaling': scaling}
  if rotated != width:
    rope['partial_rotary_factor'] = rotated / width
  return rope


def _divisors(special: Values, tensors: Tensors, pairs: int) -> dict[str, Any]:
  """Returns `rope_scaling` where tensors are what frequencies are divided by.

  Args:
    special: metadata of the architecture.
    tensors: of the file.
    pairs: features of a head that rotate together.
  """
  names = {'long_factor': 'rope_factors_long.weight'}
  names['short_factor'] = 'rope_factors_short.weight'
  magnitude = special.get('rope.scaling.attn_factor')
  if 'rope_freqs.weight' in tensors:
    # The result of Llama 3.1's rule, which needs no length any more.
    names = dict.fromkeys(names, 'rope_freqs.weight')
    magnitude = 1.0
  if names['long_factor'] not in tensors:
    return {}
  scaling = {
    'rope_type': 'longrope',
    ORIGINAL: special.get('rope.scaling.original_context_length'),
    'attention_factor': magnitude,
  }
  for key, name in names.items():
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != (pairs,):
      raise ValueError(f'tensor {name} must have {pairs} numbers.')
    scaling[key] = [shortest(x) for x in tensor.read()]
  return scaling
