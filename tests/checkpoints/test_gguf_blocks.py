"""Blocks of a few bits: random bytes against the library that decodes them."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from kvjax.checkpoints import load_checkpoint, tensors
from kvjax.checkpoints.dequantize import dequantize_tensors
from kvjax.checkpoints.gguf.blocks import open_tensors
from kvjax.checkpoints.gguf.header import read_header
from tests.checkpoints import writing
from tests.checkpoints.gguf_writing import Raw, altered, raw, write
from tests.checkpoints.test_load import PEAK, ROOT
from tests.golden.make_gguf import HERE

KINDS = """
  Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K MXFP4
""".split()


def encoded(gguf, kind, shape, seed=0):
  """Returns a tensor of random blocks."""
  block, size = gguf.GGML_QUANT_SIZES[kind]
  count = int(np.prod(shape)) // block * size
  data = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
  return Raw(shape, int(kind), data.tobytes())


def decoded(gguf, kind, tensor):
  rows = np.frombuffer(tensor.data, np.uint8).reshape(*tensor.shape[:-1], -1)
  return gguf.dequantize(rows, kind)


def open_one(path, tensor):
  return open_tensors(read_header(write(path / 'x.gguf', {}, {'x': tensor})))


@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
@pytest.mark.filterwarnings('ignore:overflow:RuntimeWarning')
@pytest.mark.parametrize('name', KINDS)
def test_random_blocks(tmp_path, name, monkeypatch):
  gguf = pytest.importorskip('gguf')
  kind = gguf.GGMLQuantizationType[name]
  for shape in (37, 512), (3, 5, 256), (256,):
    tensor = encoded(gguf, kind, shape)
    found = open_one(tmp_path, tensor)['x']
    want = decoded(gguf, kind, tensor)
    assert (found.shape, found.dtype, found.size) == (
      *(shape, 'F32', len(tensor.data)),
    )
    np.testing.assert_array_equal(found.read(), want)
    # Four rows of weights at a time, and one where a row is larger.
    monkeypatch.setattr('kvjax.checkpoints.dequantize.BLOCK', 4 * 4 * 512)
    blocks = list(found.blocks())
    assert len(blocks) == {37: 10, 3: 3, 256: 1}[shape[0]]
    np.testing.assert_array_equal(np.concatenate(blocks), want)
    monkeypatch.undo()


@pytest.mark.parametrize(
  ('dtype', 'kind'), [('f4', 0), ('f2', 1), ('f8', 28), ('bf16', 30)]
)
def test_plain_numbers_need_no_library(tmp_path, monkeypatch, dtype, kind):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  dtype = ml_dtypes.bfloat16 if dtype == 'bf16' else np.dtype(dtype)
  array = np.arange(12).reshape(3, 4).astype(dtype)
  tensor = Raw((3, 4), kind, array.tobytes())
  found = open_one(tmp_path, tensor)['x'].read()
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, array)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(ValueError, match=r"pip install 'kvjax\[gguf\]'"):
    open_one(tmp_path, Raw((1, 32), 2, bytes(18)))


def test_types_and_rows_that_no_block_fits(tmp_path):
  pytest.importorskip('gguf')
  with pytest.raises(ValueError, match='type 99, which the library gguf does'):
    open_one(tmp_path, Raw((1, 32), 99, bytes(18)))
  with pytest.raises(ValueError, match='rows of 33 weights.*blocks of 32'):
    open_one(tmp_path, Raw((1, 33), 2, bytes(18)))
  with pytest.raises(ValueError, match='stored as I32.*does not decode'):
    open_one(tmp_path, Raw((1, 8), 26, bytes(32)))


def swap_halves(blocks):
  """Returns blocks of MXFP4 as llama.cpp's converter packs published ones.

  A published byte has weights 2i and 2i + 1, a byte of GGUF i and i + 16.
  """
  low, high = blocks & 15, blocks >> 4
  codes = np.stack([low, high], -1).reshape(*blocks.shape[:-1], 32)
  return codes[..., :16] | codes[..., 16:] << 4


def test_mxfp4_is_that_of_the_published_gpt_oss(tmp_path):
  pytest.importorskip('gguf')
  draw = np.random.default_rng(0)
  blocks = draw.integers(0, 256, (3, 5, 2, 16)).astype(np.uint8)
  scales = draw.integers(100, 150, (3, 5, 2)).astype(np.uint8)
  file = tmp_path / 'model.safetensors'
  writing.write(file, {'down_proj_blocks': blocks, 'down_proj_scales': scales})
  method = {'quantization_config': {'quant_method': 'mxfp4'}}
  published = dequantize_tensors(method, tensors.read_header(file))
  data = np.concatenate([scales[..., None], swap_halves(blocks)], -1)
  tensor = Raw((3, 5, 64), 39, data.tobytes())
  found = open_one(tmp_path, tensor)['x'].read()
  want = published['down_proj'].read().swapaxes(1, 2)
  np.testing.assert_array_equal(found, want)


def test_a_model_of_blocks_is_float32(tmp_path):
  """Rows are moved after they are decoded, heads of 32 features."""
  gguf = pytest.importorskip('gguf')
  source = HERE / 'llama.gguf'
  kind = gguf.GGMLQuantizationType.Q8_0
  shapes = {
    'token_embd.weight': (97, 64),
    'output.weight': (97, 64),
    'attn_q.weight': (64, 64),
    'attn_k.weight': (32, 64),
    'attn_v.weight': (32, 64),
    'attn_output.weight': (64, 64),
    'ffn_gate.weight': (96, 64),
    'ffn_up.weight': (96, 64),
    'ffn_down.weight': (64, 96),
  }
  draw = np.random.default_rng(0)
  kept = {}

  def quantized(found):
    result = {}
    for name in found:
      shape = shapes.get(name.split('.', 2)[-1], shapes.get(name))
      if shape is None:
        result[name] = raw(np.ones(64, np.float32))
        continue
      weights = draw.standard_normal(shape).astype(np.float32)
      data = gguf.quantize(weights, kind)
      kept[name] = gguf.dequantize(data, kind)
      result[name] = Raw(shape, int(kind), data.tobytes())
    return result

  metadata = {
    'llama.embedding_length': 64,
    'llama.feed_forward_length': 96,
    'llama.attention.head_count': 2,
    'llama.attention.head_count_kv': 1,
    'llama.attention.key_length': 32,
    'llama.attention.value_length': 32,
    'llama.rope.dimension_count': 32,
  }
  path = altered(tmp_path / 'x.gguf', source, metadata, quantized)
  config, params = load_checkpoint(path)
  assert config.dtype == 'float32'
  np.testing.assert_array_equal(params['embedding'], kept['token_embd.weight'])
  attention = params['layers'][1]['attention']
  np.testing.assert_array_equal(attention['value'], kept['blk.1.attn_v.weight'])
  # Pair i of a head is rows 2i and 2i + 1 of the file, i and i + 16 here.
  order = [2 * i + part for part in (0, 1) for i in range(16)]
  key = kept['blk.1.attn_k.weight'][order]
  np.testing.assert_array_equal(attention['key'], key)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_host_memory_stays_within_a_fifth_of_the_model(tmp_path):
  """Blocks are decoded a few rows at a time."""
  pytest.importorskip('gguf')
  shape = 40000, 512

  def wide(found):
    rows = Raw(shape, 2, bytes(shape[0] * shape[1] // 32 * 18))
    ends = {'token_embd.weight': rows, 'output_norm.weight': ones(512)}
    block = {
      'attn_norm': (512,),
      'ffn_norm': (512,),
      'attn_q': (512, 512),
      'attn_k': (256, 512),
      'attn_v': (256, 512),
      'attn_output': (512, 512),
      'ffn_gate': (512, 512),
      'ffn_up': (512, 512),
      'ffn_down': (512, 512),
    }
    return ends | {
      f'blk.0.{name}.weight': ones(*axes) for name, axes in block.items()
    }

  ones = lambda *axes: raw(np.ones(axes, np.float32))
  metadata = {
    'llama.block_count': 1,
    'llama.vocab_size': shape[0],
    'llama.embedding_length': 512,
    'llama.feed_forward_length': 512,
    'llama.attention.head_count': 16,
    'llama.attention.head_count_kv': 8,
    'llama.attention.key_length': 32,
    'llama.attention.value_length': 32,
    'llama.rope.dimension_count': 32,
  }
  source = HERE / 'llama.gguf'
  path = altered(tmp_path / 'x.gguf', source, metadata, wide)
  run = subprocess.run(
    [sys.executable, '-c', f'import gguf{PEAK}', str(source), str(path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for line in run.stdout.splitlines():
    model, share = map(float, line.split())
    assert model > 40e6 and 0.7 < share <= 1.2, run.stdout
