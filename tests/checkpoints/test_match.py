"""Parts of params: read alone, they are those of the whole param."""

import itertools
import math
import pathlib

import numpy as np
import pytest

from kvjax.checkpoints import dequantize, tensors
from kvjax.checkpoints.load import open_checkpoint
from tests.checkpoints.test_dequantize import fp8, in_blocks
from tests.checkpoints.writing import GOLDEN, altered, write
from tests.golden.make_gguf import HERE

FAMILIES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
FILES = sorted(HERE.glob('*.gguf'))


def halves(shape):
  """Returns the index of every half along any axes, of uneven sizes."""
  cuts = [((0, n // 3), (n // 3, n)) for n in shape]
  for bounds in itertools.product(*cuts):
    yield tuple(slice(*pair) for pair in bounds)


def check_parts(path: pathlib.Path) -> None:
  _, sources = open_checkpoint(path)
  for source in sources:
    whole = source.read()
    for index in halves(source.shape):
      np.testing.assert_array_equal(source.read(index), whole[index])


@pytest.fixture(params=[1 << 22, 64], ids=['whole', 'blocks'], autouse=True)
def block(request, monkeypatch):
  """Tensors are read at once, and a few rows at a time."""
  for module in (tensors, dequantize):
    monkeypatch.setattr(module, 'BLOCK', request.param)


@pytest.mark.parametrize('name', FAMILIES)
def test_of_every_family(name):
  check_parts(GOLDEN / name)


@pytest.mark.parametrize('path', FILES, ids=[path.stem for path in FILES])
def test_of_gguf_files(path):
  pytest.importorskip('gguf')
  check_parts(path)


def test_of_fp8(tmp_path):
  size = 8, 16
  check_parts(
    altered(tmp_path, 'deepseek_v3', in_blocks(*size), lambda x: fp8(x, size))
  )


def test_of_mxfp4(tmp_path):
  draw = np.random.default_rng(0)
  codes = draw.integers(0, 256, (3, 5, 2, 16)).astype(np.uint8)
  scales = draw.integers(120, 132, (3, 5, 2)).astype(np.uint8)
  stored = {'x_blocks': codes, 'x_scales': scales}
  write(tmp_path / 'x.safetensors', stored)
  plain = dequantize.dequantize_tensors(
    {'quantization_config': {'quant_method': 'mxfp4'}},
    tensors.read_header(tmp_path / 'x.safetensors'),
  )['x']
  whole = plain.read()
  for index in halves(plain.shape):
    found = np.concatenate(list(plain.blocks(index)))
    np.testing.assert_array_equal(found, whole[index])


def test_bytes_that_are_mapped(monkeypatch):
  """Of a plain tensor a part is read, and not more."""
  read, sizes = tensors.StoredTensor.read, []

  def count(tensor, index=()):
    found = read(tensor, index)
    sizes.append(found.nbytes)
    return found

  monkeypatch.setattr(tensors.StoredTensor, 'read', count)
  _, sources = open_checkpoint(GOLDEN / 'llama')
  for source in sources:
    for index in halves(source.shape):
      sizes.clear()
      found = source.read(index)
      assert sum(sizes) == math.prod(found.shape) * 4
