"""fp8 and mxfp4 are dequantized as they are read, by a second formula."""

import ml_dtypes
import numpy as np
import pytest

from kvjax.checkpoints import load_checkpoint, parse_config
from kvjax.checkpoints.dequantize import dequantize_tensors
from kvjax.checkpoints.tensors import read_header
from tests.checkpoints.writing import GOLDEN, altered, read, write

MXFP4 = {'quantization_config': {'quant_method': 'mxfp4'}}


def four_bits(code):
  """A float of one sign, two exponent and one mantissa bit, by its formula."""
  sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
  if exponent == 0:
    size = mantissa * 0.5
  else:
    size = 2.0 ** (exponent - 1) * (1 + mantissa / 2)
  return -size if sign else size


def test_mxfp4_by_hand(tmp_path):
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (3, 5, 2, 16)).astype(np.uint8)
  scales = rng.integers(120, 132, (3, 5, 2)).astype(np.uint8)
  file = tmp_path / 'model.safetensors'
  write(file, {'down_proj_blocks': blocks, 'down_proj_scales': scales})
  found = dequantize_tensors(MXFP4, read_header(file))
  assert list(found) == ['down_proj']
  plain = found['down_proj'].read()
  assert plain.shape == found['down_proj'].shape == (3, 64, 5)
  for expert, column, row in [(0, 0, 0), (1, 33, 4), (2, 63, 2), (2, 1, 1)]:
    byte = blocks[expert, row, column // 32, column % 32 // 2]
    code = byte >> 4 if column % 2 else byte & 15
    want = four_bits(int(code)) * 2.0 ** (
      int(scales[expert, row, column // 32]) - 127
    )
    assert plain[expert, column, row] == want


def fp8(tensors, block):
  """Returns tensors with every matrix of a layer in fp8 blocks."""
  found = {}
  for name, x in tensors.items():
    if x.ndim != 2 or '.layers.' not in name or name.endswith('gate.weight'):
      found[name] = x
      continue
    fit = tuple(-(-n // b) for n, b in zip(x.shape, block, strict=True))
    scales = np.linspace(0.01, 0.02, fit[0] * fit[1], dtype=np.float32)
    scales = scales.reshape(fit)
    wide = np.kron(scales, np.ones(block, np.float32))
    codes = x / wide[: x.shape[0], : x.shape[1]]
    found[name] = codes.astype(ml_dtypes.float8_e4m3fn)
    found[f'{name}_scale_inv'] = scales
  return found


def in_blocks(*block):
  """Returns a change of config.json to fp8 in blocks of that size."""
  method = {'quant_method': 'fp8', 'weight_block_size': block}
  return lambda config: config | {'quantization_config': method}


def test_fp8_checkpoint(tmp_path):
  block = (8, 16)
  path = altered(
    tmp_path, 'deepseek_v3', in_blocks(*block), lambda x: fp8(x, block)
  )
  name = 'model.layers.1.self_attn.o_proj.weight'
  stored = read(path / 'model.safetensors')
  scales = np.kron(stored[f'{name}_scale_inv'], np.ones(block))[:24, :15]
  want = stored[name].astype(np.float64) * scales
  _, params = load_checkpoint(path, dtype='float32')
  found = params['layers'][1]['attention']['output']
  np.testing.assert_allclose(found, want, rtol=1e-6)
  _, plain = load_checkpoint(GOLDEN / 'deepseek_v3')
  near = plain['layers'][1]['attention']['output']
  np.testing.assert_allclose(found, near, rtol=0.07, atol=1e-3)


def test_scales_that_do_not_fit(tmp_path):
  path = altered(
    tmp_path, 'deepseek_v3', in_blocks(8, 8), lambda x: fp8(x, (8, 16))
  )
  with pytest.raises(ValueError, match='weight_scale_inv has shape'):
    load_checkpoint(path)


def test_scales_without_codes(tmp_path):
  file = tmp_path / 'model.safetensors'
  write(file, {'down_proj_scales': np.zeros((1, 2, 3), np.uint8)})
  with pytest.raises(ValueError, match='down_proj_scales scales nothing'):
    dequantize_tensors(MXFP4, read_header(file))


@pytest.mark.parametrize('method', ['awq', 'gptq', 'bitsandbytes'])
def test_other_methods_are_refused_by_name(method):
  with pytest.raises(ValueError, match=f"'{method}' is not.*fp8, mxfp4"):
    parse_config(
      {'model_type': 'llama', 'quantization_config': {'quant_method': method}}
    )


def test_fp8_without_blocks_is_refused():
  with pytest.raises(ValueError, match='weight_block_size=None'):
    parse_config(
      {'model_type': 'llama', 'quantization_config': {'quant_method': 'fp8'}}
    )
