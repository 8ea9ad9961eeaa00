"""Makes the GGUF files that tests/checkpoints/test_gguf_architectures.py reads.

    python -m tests.golden.make_gguf

Needs the library gguf; the tests do not. Each file is a fixture of
tests/golden/checkpoints as llama.cpp's converter writes it: keys, names and
changes of weights follow its source (github.com/ggml-org/llama.cpp,
convert_hf_to_gguf.py and conversion/), bytes are those of gguf.GGUFWriter.
Where GGUF has no key for a setting of the fixture, because llama.cpp's code has
a constant, the fixture is first changed to that constant.
"""

import dataclasses
import importlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.checkpoints.writing import GOLDEN, read

HERE = pathlib.Path(__file__).parent / 'gguf'
UNUSED = 5  # type of a token


@dataclasses.dataclass(frozen=True)
class Case:
  """One file.

  Attributes:
    fixture: its name.
    arch: of llama.cpp.
    changes: of its config.json.
    half: weights of two axes are float16.
  """

  fixture: str
  arch: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  half: bool = False

  def config(self) -> dict[str, Any]:
    file = GOLDEN / self.fixture / 'config.json'
    return json.loads(file.read_text()) | dict(self.changes)


CASES = {
  'llama': Case('llama', 'llama'),
  # The converter reads the length of pretraining here, and else takes 8192.
  'llama3_old': Case(
    'llama3_old', 'llama', {'original_max_position_embeddings': 16}
  ),
  'qwen2': Case('qwen2', 'qwen2', {'use_sliding_window': False}),
  'qwen2_half': Case(
    'qwen2', 'qwen2', {'use_sliding_window': False}, half=True
  ),
  'qwen3': Case('qwen3', 'qwen3'),
  'gemma2': Case('gemma2', 'gemma2', {'query_pre_attn_scalar': 6}),
  # Of six layers five have a window; the fixture has two.
  'gemma3': Case(
    'gemma3',
    'gemma3',
    {
      'query_pre_attn_scalar': 6,
      'layer_types': ['sliding_attention'] * 2,
    },
  ),
  'phi3': Case('phi3', 'phi3'),
  'gpt_oss': Case('gpt_oss', 'gpt-oss', {'swiglu_limit': 7.0}),
}


def main() -> None:
  for name, case in CASES.items():
    tensors = read(GOLDEN / case.fixture / 'model.safetensors')
    write(HERE / f'{name}.gguf', case.arch, case.config(), tensors, case.half)


def write(
  path: pathlib.Path,
  arch: str,
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  half: bool = False,
) -> None:
  """Writes a published model as a file of llama.cpp."""
  gguf: Any = importlib.import_module('gguf')
  writer = gguf.GGUFWriter(path, arch)
  add_settings(writer, arch, config)
  add_vocabulary(writer, config)
  kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
  layers = config['num_hidden_layers']
  names = gguf.get_tensor_name_map(kinds[arch], layers)
  for name, array in tensors.items():
    for key, weights in convert(arch, config, name, array):
      found = names.get_name(key, ('.weight', '.bias'))
      assert found is not None, key
      dtype = np.float16 if half and weights.ndim > 1 else np.float32
      writer.add_tensor(found, np.ascontiguousarray(weights, dtype))
  for name, array in rope_tensors(config).items():
    writer.add_tensor(name, np.asarray(array, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def add_vocabulary(writer: Any, config: Mapping[str, Any]) -> None:
  """Adds a vocabulary without tokens, padded as the converter pads one."""
  count = config['vocab_size']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('default')
  writer.add_token_list([f'[PAD{i}]' for i in range(count)])
  writer.add_token_types([UNUSED] * count)
  writer.add_token_merges(['[ P'])
  if config.get('pad_token_id') is not None:
    writer.add_pad_token_id(config['pad_token_id'])


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the rope parameters with base and type, in the newer style."""
  rope = dict(config.get('rope_parameters') or config.get('rope_scaling') or {})
  if 'full_attention' not in rope and config.get('rope_theta'):
    rope.setdefault('rope_theta', config['rope_theta'])
  if 'type' in rope:
    rope['rope_type'] = rope.pop('type')
  return rope


def add_settings(writer: Any, arch: str, config: Mapping[str, Any]) -> None:
  """`TextModel.set_gguf_parameters`, and what the architectures add."""
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(config['num_attention_heads'])
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  if 'head_dim' in config:  # Phi-3's converter writes none, nor its fixture
    writer.add_key_length(config['head_dim'])
    writer.add_value_length(config['head_dim'])
  writer.add_file_type(0)
  if arch != 'gemma2':  # whose converter writes nothing of the rotation
    add_rope(writer, arch, config)
  if arch == 'llama':
    writer.add_vocab_size(config['vocab_size'])
    writer.add_rope_dimension_count(config['head_dim'])
  if arch == 'gemma2':
    writer.add_attn_logit_softcapping(config['attn_logit_softcapping'])
    writer.add_final_logit_softcapping(config['final_logit_softcapping'])
  if arch in ('gemma2', 'gemma3', 'gpt-oss'):
    writer.add_sliding_window(config['sliding_window'])
  if arch == 'phi3':
    writer.add_sliding_window(config['sliding_window'] or 0)
  if arch == 'gpt-oss':
    writer.add_expert_feed_forward_length(config['intermediate_size'])
    writer.add_expert_count(config['num_local_experts'])
    writer.add_expert_used_count(config['num_experts_per_tok'])


def add_rope(writer: Any, arch: str, config: Mapping[str, Any]) -> None:
  gguf: Any = importlib.import_module('gguf')
  rope = rope_of(config)
  full = rope.get('full_attention', rope)
  kind = full.get('rope_type')
  if arch == 'phi3':
    original = config['original_max_position_embeddings']
    width = config['hidden_size'] // config['num_attention_heads']
    scale = config['max_position_embeddings'] / original
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(width)
    writer.add_rope_scaling_attn_factors(
      math.sqrt(1 + math.log(scale) / math.log(original))
    )
  elif kind in ('linear', 'yarn'):
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(full['factor'])
    if kind == 'yarn':
      writer.add_rope_scaling_orig_ctx_len(
        full['original_max_position_embeddings']
      )
  writer.add_rope_freq_base(full['rope_theta'])
  if 'sliding_attention' in rope:
    writer.add_rope_freq_base_swa(rope['sliding_attention']['rope_theta'])


def rope_tensors(config: Mapping[str, Any]) -> dict[str, Any]:
  """`generate_extra_tensors` of Llama and Phi-3."""
  rope = rope_of(config)
  if rope.get('rope_type') == 'longrope':
    return {
      'rope_factors_long.weight': rope['long_factor'],
      'rope_factors_short.weight': rope['short_factor'],
    }
  if rope.get('rope_type') != 'llama3':
    return {}
  width, factor = config['head_dim'], rope['factor']
  original = config.get('original_max_position_embeddings', 8192)
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  factors = []
  for i in range(0, width, 2):
    wavelength = 2 * math.pi * rope['rope_theta'] ** (i / width)
    if wavelength < original / high:
      factors.append(1)
    elif wavelength > original / low:
      factors.append(factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return {'rope_freqs.weight': factors}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
  """`LlamaModel.permute`."""
  shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
  return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def convert(
  arch: str, config: Mapping[str, Any], name: str, array: np.ndarray
) -> list[tuple[str, np.ndarray]]:
  """`modify_tensors`: published names, and what is done to the weights."""
  if arch == 'llama' and '.q_proj.' in name:
    return [(name, permute(array, config['num_attention_heads']))]
  if arch == 'llama' and '.k_proj.' in name:
    return [(name, permute(array, config['num_key_value_heads']))]
  if arch.startswith('gemma') and name.endswith('norm.weight'):
    return [(name, array + np.float32(1))]
  if name.endswith('sinks'):
    return [(f'{name}.weight', array)]
  if '.experts.' not in name:
    return [(name, array)]
  end = '.bias' if name.endswith('_bias') else '.weight'
  stem = name.removesuffix('_bias')
  if end == '.weight':
    array = array.swapaxes(-1, -2)
  if stem.endswith('down_proj'):
    return [(stem + end, array)]
  parts = (
    (array[:, ::2], array[:, 1::2])
    if end == '.weight'
    else (array[..., ::2], array[..., 1::2])
  )
  stem = stem.removesuffix('gate_up_proj')
  return [
    (f'{stem}gate_proj{end}', parts[0]),
    (f'{stem}up_proj{end}', parts[1]),
  ]


if __name__ == '__main__':
  main()
