"""Checkpoints that are broken, or made to break a reader, are refused by name.

Nothing here is loaded as far as a device: each fault is refused while headers
and config.json are read, or while its tensor is.
"""

import json
import math
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from kvjax.checkpoints import load_checkpoint, load_config
from kvjax.checkpoints.dequantize import ENDINGS, dequantize_tensors
from kvjax.checkpoints.match import ParamSource
from kvjax.checkpoints.table import TableRow
from kvjax.checkpoints.tensors import INDEX, SINGLE, open_tensors
from tests.checkpoints.writing import altered, write

DEEP = '{"a":' * 100_000
LONG_INTEGER = '{"a": ' + '1' * 5_000 + '}'
A = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}
B = {'dtype': 'F32', 'shape': [2], 'data_offsets': [24, 32]}
BAD = 'describes tensor b badly'
NOT_TILED = 'without holes or shared bytes'


def write_raw(path, header, size=32):
  """Writes a safetensors file of a header, a text or a dict, and zeros."""
  text = header if isinstance(header, str) else json.dumps(header)
  data = text.encode()
  path.write_bytes(len(data).to_bytes(8, 'little') + data + bytes(size))


# Header, bytes of data, message. Offsets of the second tensor begin at 24.
HEADERS = {
  'nested': (DEEP, 32, 'safetensors has a header that is no JSON: nested'),
  'long_integer': (LONG_INTEGER, 32, 'header that is no JSON: Exceeds'),
  'two_equal_keys': (
    f'{{"a": {json.dumps(A)}, "b": {json.dumps(B)}, "b": {json.dumps(B)}}}',
    32,
    "the key 'b' is there twice",
  ),
  'bytes_after_the_last': ({'a': A, 'b': B}, 132, 'has 100 bytes after its'),
  'no_tensor_but_bytes': ({}, 32, 'has 32 bytes after its last tensor'),
  'shared_bytes': (
    {'a': A, 'b': B | {'data_offsets': [16, 24]}},
    24,
    NOT_TILED,
  ),
  'same_bytes': ({'a': A, 'b': A}, 24, NOT_TILED),
  'hole': ({'a': A, 'b': B | {'data_offsets': [28, 36]}}, 36, NOT_TILED),
  'hole_at_the_start': ({'b': B}, 32, NOT_TILED),
  'beyond_the_end': (
    {'a': A, 'b': B | {'shape': [2**40], 'data_offsets': [24, 2**42 + 24]}},
    32,
    r'is truncated: its tensors end at byte \d+ of',
  ),
  'offsets_floats': (
    {'a': A, 'b': B | {'data_offsets': [24.0, 32.0]}},
    32,
    BAD,
  ),
  'offsets_texts': ({'a': A, 'b': B | {'data_offsets': ['24', '32']}}, 32, BAD),
  'offsets_switches': ({'b': B | {'data_offsets': [False, True]}}, 1, BAD),
  'offsets_negative': ({'b': B | {'data_offsets': [-8, 0]}}, 8, BAD),
  'offsets_reversed': ({'b': B | {'data_offsets': [8, 0]}}, 8, BAD),
  'offsets_three': ({'b': B | {'data_offsets': [0, 4, 8]}}, 8, BAD),
  'shape_floats': ({'a': A, 'b': B | {'shape': [2.0]}}, 32, BAD),
  'shape_text': ({'a': A, 'b': B | {'shape': '2'}}, 32, BAD),
  'shape_texts': ({'a': A, 'b': B | {'shape': ['2']}}, 32, BAD),
  'shape_switches': ({'a': A, 'b': B | {'shape': [True, 2]}}, 32, BAD),
  'shape_negative': ({'a': A, 'b': B | {'shape': [-1, -2]}}, 32, BAD),
  'dtype_list': ({'a': A, 'b': B | {'dtype': ['F32']}}, 32, BAD),
  'codes_of_another_size': (
    {'a': A, 'b': B | {'dtype': 'U8'}},
    32,
    r'tensor b \[2\] of U8 takes 2 bytes; the header gives it 8',
  ),
}


@pytest.mark.parametrize('name', HEADERS)
def test_header(tmp_path, name):
  header, size, message = HEADERS[name]
  write_raw(tmp_path / SINGLE, header, size)
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path)


def test_a_sound_header(tmp_path):
  """Order in the header is free, an empty tensor has no bytes."""
  empty = {'dtype': 'F32', 'shape': [0, 5], 'data_offsets': [24, 24]}
  header = {'b': B, 'e': empty, '__metadata__': {'format': 'pt'}, 'a': A}
  write_raw(tmp_path / SINGLE, header)
  tensors = open_tensors(tmp_path)
  assert {k: v.read().shape for k, v in tensors.items()} == {
    'a': (2, 3),
    'b': (2,),
    'e': (0, 5),
  }


# What is at a path instead of a file. A pipe would keep its reader waiting.
NO_FILES = {
  'pipe': os.mkfifo,
  'directory': os.mkdir,
  'device': lambda path: os.symlink('/dev/zero', path),
  'loop': lambda path: os.symlink(path, path),
}


@pytest.mark.parametrize('name', NO_FILES)
def test_no_regular_file(tmp_path, name):
  NO_FILES[name](tmp_path / SINGLE)
  with pytest.raises(ValueError, match=f'{SINGLE} is there and no reg'):
    open_tensors(tmp_path)


def test_an_index_or_a_shard_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / INDEX)
  with pytest.raises(ValueError, match=f'{INDEX} is there and no reg'):
    open_tensors(tmp_path)
  (tmp_path / INDEX).unlink()
  os.mkfifo(tmp_path / 'one.safetensors')
  (tmp_path / INDEX).write_text('{"weight_map": {"a": "one.safetensors"}}')
  with pytest.raises(FileNotFoundError, match="the shard 'one.safetensors'"):
    open_tensors(tmp_path)


UNTYPED = f'{INDEX} is no index of shards: weight_map must be an object'
SHARDS = {
  'number': ({'a': 1, 'b': 'one'}, UNTYPED),
  'list': ({'a': ['one']}, UNTYPED),
  'null': ({'a': None, 'b': 'one'}, UNTYPED),
  'map_list': (['one'], UNTYPED),
  'map_null': (None, UNTYPED),
  'map_number': (1, UNTYPED),
}


@pytest.mark.parametrize('name', SHARDS)
def test_index(tmp_path, name):
  where, message = SHARDS[name]
  (tmp_path / INDEX).write_text(json.dumps({'weight_map': where}))
  with pytest.raises(ValueError, match=message):
    open_tensors(tmp_path)


@pytest.mark.parametrize('shard', ['', '.', '..', '../x', '/x', 'a\0b'])
def test_shard_elsewhere(tmp_path, shard):
  (tmp_path / INDEX).write_text(json.dumps({'weight_map': {'a': shard}}))
  with pytest.raises(FileNotFoundError, match='names the shard .*no file of'):
    open_tensors(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'\xff{}', 'invalid start byte'),
    (DEEP.encode(), 'nested too deeply'),
    (LONG_INTEGER.encode(), 'Exceeds the limit'),
    (b'{"vocab_size": 7, "vocab_size": 9}', "key 'vocab_size' is there twice"),
  ],
  ids=['latin', 'nested', 'long_integer', 'two_equal_keys'],
)
def test_text_of_index_and_config(tmp_path, text, message):
  (tmp_path / INDEX).write_bytes(text)
  with pytest.raises(ValueError, match=f'{INDEX} is no JSON: .*{message}'):
    open_tensors(tmp_path)
  (tmp_path / 'config.json').write_bytes(text)
  with pytest.raises(ValueError, match=f'config.json is no JSON: .*{message}'):
    load_config(tmp_path)


@pytest.mark.parametrize(
  ('stored', 'dtype', 'target'),
  [
    ('F64', np.float64, np.float32),
    ('F64', np.float64, ml_dtypes.bfloat16),
    ('F32', np.float32, np.float16),
    ('BF16', ml_dtypes.bfloat16, np.float16),
  ],
)
def test_weight_beyond_its_dtype(tmp_path, stored, dtype, target):
  """A weight may be infinite as stored, and must not become infinite."""
  for large in (math.inf, float(ml_dtypes.finfo(dtype).max)):
    weights = np.array([1, large], dtype)
    entry = {'dtype': stored, 'shape': [2]}
    entry['data_offsets'] = [0, weights.nbytes]
    write_raw(tmp_path / SINGLE, {'norm.weight': entry}, 0)
    with (tmp_path / SINGLE).open('ab') as file:
      file.write(weights.tobytes())
    source = ParamSource(
      place='norm.weight',
      shape=(2,),
      dtype=np.dtype(target),
      row=TableRow('norm.weight', ('D',), 'norm.weight'),
      sizes={'D': 2},
      tensors=(open_tensors(tmp_path)['norm.weight'],),
    )
    if large == math.inf:
      assert np.isinf(source.read().astype(np.float32)[1])
      continue
    with pytest.raises(ValueError, match='Tensor norm.weight has weights that'):
      source.read()


def test_quantization_without_codes_is_harmless(tmp_path):
  """Each tensor says how it is stored, so plain weights have one meaning."""
  write_raw(tmp_path / SINGLE, {'a': A, 'b': B})
  tensors = open_tensors(tmp_path)
  fp8 = {'quant_method': 'fp8', 'weight_block_size': [128, 128]}
  assert dequantize_tensors({'quantization_config': fp8}, tensors) == tensors


# Method, dtype and shape of codes and of scales, message.
PARTS = {
  'fp8_of_a_vector': ('fp8', 'F8_E4M3', [8], 'F32', [1], 'parts of a matrix'),
  'fp8_of_floats': ('fp8', 'F32', [2, 4], 'F32', [1, 1], 'is stored as F32'),
  'fp8_by_bytes': ('fp8', 'U8', [2, 4], 'U8', [1, 1], 'is stored as U8'),
  'mxfp4_by_floats': (
    'mxfp4',
    'U8',
    [1, 2, 1, 16],
    'F32',
    [1, 2, 1],
    'x_scales is stored as F32; as a part of x it must be U8',
  ),
}


@pytest.mark.parametrize('name', PARTS)
def test_parts_of_a_quantized_tensor(tmp_path, name):
  method, code, shape, scale, blocks, message = PARTS[name]
  scales_name, codes_name, _ = (f'x{end}' for end in ENDINGS[method])
  header, end = {}, 0
  for key, dtype, sizes in (
    (codes_name, code, shape),
    (scales_name, scale, blocks),
  ):
    start = end
    end += math.prod(sizes) * (4 if dtype == 'F32' else 1)
    header[key] = {'dtype': dtype, 'shape': sizes, 'data_offsets': [start, end]}
  write_raw(tmp_path / SINGLE, header, end)
  values = {
    'quantization_config': {
      'quant_method': method,
      'weight_block_size': [128, 128],
    }
  }
  with pytest.raises(ValueError, match=message):
    dequantize_tensors(values, open_tensors(tmp_path))


def test_a_block_larger_than_its_matrix(tmp_path):
  """It takes no more memory than the matrix."""
  codes = np.arange(6).reshape(2, 3).astype(ml_dtypes.float8_e4m3fn)
  scales = np.array([[0.5]], np.float32)
  tensors = {'x.weight': codes, 'x.weight_scale_inv': scales}
  write(tmp_path / SINGLE, tensors)
  fp8 = {'quant_method': 'fp8', 'weight_block_size': [2**24, 2**24]}
  stored = open_tensors(tmp_path)
  plain = dequantize_tensors({'quantization_config': fp8}, stored)['x.weight']
  tracemalloc.start()
  np.testing.assert_array_equal(plain.read(), np.arange(6).reshape(2, 3) / 2)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def test_layers_and_experts_that_only_config_json_has(tmp_path):
  """They are missed before they are traced, or their names are made."""
  more = lambda config: config | {'num_hidden_layers': 1000}
  with pytest.raises(ValueError, match='asks for 1000 layers.*has 21 tensors'):
    load_checkpoint(altered(tmp_path, 'llama', more))
  more = lambda config: config | {'num_local_experts': 2**24}
  with pytest.raises(ValueError, match='experts.4.w2.weight .*is missing'):
    load_checkpoint(altered(tmp_path, 'mixtral', more))
