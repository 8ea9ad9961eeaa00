"""GGUF files: params and config equal those of the published directory.

tests/golden/make_gguf.py wrote the files as llama.cpp's converter does.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import load_checkpoint, load_config
from kvjax.checkpoints.gguf import architectures, header
from tests.checkpoints import gguf_writing
from tests.checkpoints.writing import GOLDEN, altered
from tests.golden.make_gguf import CASES, HERE

TOLERANCE = 1e-4  # of logits, absolute
FLOAT = r'\d+\.\d+(?:e-?\d+)?'


def published(folder, name):
  """Returns config and params of the directory that a file was made of."""
  case = CASES[name]
  change = lambda config: config | dict(case.changes)
  path = altered(folder, case.fixture, config=change)
  return load_checkpoint(path)


@pytest.mark.parametrize('name', CASES)
def test_params_are_those_of_the_directory(tmp_path, name):
  config, params = load_checkpoint(HERE / f'{name}.gguf')
  _, want = published(tmp_path, name)
  assert jax.tree.structure(params) == jax.tree.structure(want)
  # 1 is added to the norms of Gemma and subtracted again, in float32.
  atol = 1.2e-7 if name.startswith('gemma') else 0
  if CASES[name].half:
    assert config.dtype == 'float16'
    want = jax.tree.map(lambda x: x.astype(jnp.float16), want)
  for found, wanted in zip(*map(jax.tree.leaves, (params, want)), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize('name', CASES)
def test_config_is_that_of_the_directory(tmp_path, name):
  config = load_config(HERE / f'{name}.gguf')
  want, _ = published(tmp_path, name)
  if CASES[name].half:
    assert config.dtype == 'float16'
    config = dataclasses.replace(config, dtype='float32')
  if name == 'llama3_old':  # a file has the divisors, and not their rule
    return
  # A number of float32 in a file may be the neighbour of the published one.
  assert re.sub(FLOAT, '', repr(config)) == re.sub(FLOAT, '', repr(want))
  numbers = [
    [float(x) for x in re.findall(FLOAT, repr(x))] for x in (config, want)
  ]
  np.testing.assert_allclose(*numbers, rtol=1e-7)


# Fixtures that GGUF expresses as they are.
@pytest.mark.parametrize('name', ['llama', 'llama3_old', 'qwen3', 'phi3'])
def test_logits_are_those_of_the_published_implementation(name):
  config, params = load_checkpoint(HERE / f'{name}.gguf')
  with np.load(GOLDEN / name / 'reference.npz') as reference:
    found = kvjax.forward(config, params, jnp.asarray(reference['tokens']))
    np.testing.assert_allclose(
      found, reference['logits'], atol=TOLERANCE, rtol=0
    )


def test_dtype_and_weights_as_of_any_checkpoint():
  file, folder = HERE / 'llama.gguf', GOLDEN / 'llama'
  for options in ({'dtype': 'bfloat16'}, {'weights': 'int8'}):
    config, params = load_checkpoint(file, **options)
    same, want = load_checkpoint(folder, **options)
    assert config == same
    jax.tree.map(np.testing.assert_array_equal, params, want)


def test_a_file_without_a_head_is_tied(tmp_path):
  assert not load_config(HERE / 'llama.gguf').tied
  drop = lambda x: {k: v for k, v in x.items() if k != 'output.weight'}
  path = gguf_writing.altered(
    tmp_path / 'tied.gguf', HERE / 'llama.gguf', tensors=drop
  )
  config, params = load_checkpoint(path)
  assert config.tied and 'head' not in params


def test_split_projections_of_phi3(tmp_path):
  """llama.cpp reads queries, keys and values in one tensor or in three."""

  def split(tensors):
    found = dict(tensors)
    for i in range(2):
      shape, kind, data = found.pop(f'blk.{i}.attn_qkv.weight')
      ends = np.cumsum([36, 18, 18]) * shape[1] * 4
      starts = 0, *ends
      for part, start, end in zip('qkv', starts, ends, strict=False):
        rows = (int(end) - int(start)) // (shape[1] * 4)
        found[f'blk.{i}.attn_{part}.weight'] = gguf_writing.Raw(
          (rows, shape[1]), kind, data[start:end]
        )
    return found

  source = HERE / 'phi3.gguf'
  path = gguf_writing.altered(tmp_path / 'x.gguf', source, tensors=split)
  found, want = load_checkpoint(path), load_checkpoint(source)
  assert found[0] == want[0]
  jax.tree.map(np.testing.assert_array_equal, found[1], want[1])


@pytest.mark.parametrize(
  ('name', 'metadata', 'read', 'want'),
  [
    ('phi3', {'phi3.attention.sliding_window': 9}, 'window', 9),
    ('phi3', {'phi3.attention.sliding_window': 0}, 'window', None),
    ('gemma3', {'gemma3.attention.sliding_window': None}, 'window', None),
    ('gemma3', {'gemma3.attention.sliding_window_pattern': 2}, 'last', None),
    ('qwen3', {'qwen3.rope.scaling.type': 'none'}, 'scaling', None),
    ('gemma2', {'gemma2.block_count': 46}, 'scale', 0.5),
    ('qwen3', {'qwen3.attention.head_count_kv': None}, 'kv_heads', 6),
  ],
)
def test_settings_of_metadata(name, metadata, read, want):
  """Of architectures alone: no tensor fits most of these."""
  found = header.read_header(HERE / f'{name}.gguf')
  values = dict(found.metadata) | metadata
  values = {key: x for key, x in values.items() if x is not None}
  arch = CASES[name].arch
  settings = architectures.read_settings(
    dataclasses.replace(found, metadata=values), arch
  )
  model_type = architectures.ARCHITECTURES[arch].model_type
  config = architectures.FAMILIES[model_type].config(settings)
  attention = config.layers[0].attention
  assert {
    'window': attention.visibility.window,
    'last': config.layers[-1].attention.visibility.window,
    'scaling': attention.rotary.scaling,
    'scale': attention.scale,
    'kv_heads': attention.num_kv_heads,
  }[read] == want
