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
from kvjax.checkpoints.gguf import architectures, blocks, header
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
  settings = architectures.read_settings(values, blocks.open_tensors(found))
  family = architectures.ARCHITECTURES[CASES[name].arch].family()
  config = family.config(settings)
  attention = config.layers[0].attention
  assert {
    'window': attention.visibility.window,
    'last': config.layers[-1].attention.visibility.window,
    'scaling': attention.rotary.scaling,
    'scale': attention.scale,
    'kv_heads': attention.num_kv_heads,
  }[read] == want


@pytest.mark.parametrize(
  ('name', 'changes', 'message'),
  [
    ('llama', {'general.architecture': 'mamba'}, "'mamba'.*llama, qwen2, qwen"),
    ('llama', {'general.architecture': None}, 'architecture None is not supp'),
    ('llama', {'general.type': 'adapter'}, "general.type='adapter' is no mod"),
    ('llama', {'split.count': 2}, 'split.count=2.*llama-gguf-split --merge'),
    ('llama', {'general.alignment': 24}, 'alignment=24 must be a power of t'),
    ('llama', {'llama.expert_count': 8}, 'expert_count=8.*gpt-oss is'),
    ('llama', {'llama.attention.causal': False}, 'attention is not causal'),
    ('llama', {'llama.attention.value_length': 8}, 'value_length=8 differs'),
    ('llama', {'llama.rope.dimension_count': 4}, 'partial_rotary_factor=0.66'),
    ('llama', {'llama.rope.dimension_count': 9}, 'count=9 must be 1 to 6'),
    ('llama', {'llama.block_count': 3}, r'Tensor blk\.2\..* is missing'),
    ('llama', {'llama.block_count': 1}, 'Unexpected tensor blk.1.'),
    ('llama', {'llama.block_count': 10**9}, 'num_hidden_layers=1000000000'),
    ('llama', {'llama.embedding_length': None}, "has no 'hidden_size'"),
    ('llama', {'llama.embedding_length': '24'}, "hidden_size='24'.*must be"),
    ('qwen3', {'qwen3.rope.scaling.type': 'su'}, "Unknown rope type 'su'"),
    ('phi3', {'phi3.rope.dimension_count': 4}, 'long.weight must have 2 num'),
  ],
)
def test_what_is_not_supported_is_refused(tmp_path, name, changes, message):
  path = gguf_writing.altered(
    tmp_path / 'model.gguf', HERE / f'{name}.gguf', metadata=changes
  )
  with pytest.raises(ValueError, match=f'model.gguf: .*{message}'):
    load_checkpoint(path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: {'a': x, 'b': x._replace(data=x.data[:64])}, 'is truncated'),
    (lambda x: {'a': x._replace(shape=(2, 0))}, r"'a': .* \[2, 0\] is empty"),
    (lambda x: {'a': x._replace(shape=(1,) * 5)}, 'has 5 axes: 1 to 4'),
    (lambda x: {'a': x._replace(data=x.data * 2), 'b': x}, 'tensor before it'),
  ],
)
def test_tensors_that_are_not_where_they_should_be(tmp_path, change, message):
  tensors = change(gguf_writing.raw(np.ones((8, 4), np.float32)))
  metadata = {'general.architecture': 'llama', 'llama.embedding_length': 8}
  metadata |= {'llama.attention.head_count': 2}
  path = gguf_writing.write(tmp_path / 'x.gguf', metadata, tensors)
  with pytest.raises(ValueError, match=message):
    load_checkpoint(path)
