"""Decoders inside models that also read images: spellings, ids, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import load_checkpoint, parse_config
from tests.checkpoints.writing import GOLDEN, altered

# What published checkpoints have before names, or in the place of `model.`.
SPELLINGS = {
  'gemma3': ('language_model.', 'model.language_model.'),
  'llama4': ('language_model.', 'model.language_model.'),
  'mistral3': ('language_model.', 'model.language_model.'),
  'qwen2_vl': ('', 'model.language_model.'),
  'qwen3_vl': ('language_model.', 'model.language_model.'),
}
CASES = [(n, prefix) for n, all_of in SPELLINGS.items() for prefix in all_of]
TOWER = (
  *('visual.', 'model.visual.', 'vision_tower.', 'vision_model.'),
  'multi_modal_projector.',
)


def values_of(name):
  return json.loads((GOLDEN / name / 'config.json').read_text())


def plain(tensors):
  """Returns the decoder's tensors by the names of a decoder alone."""
  renamed = {
    name.replace('model.language_model.', 'model.').removeprefix(
      'language_model.'
    ): tensor
    for name, tensor in tensors.items()
  }
  return {k: v for k, v in renamed.items() if not k.startswith(TOWER)}


@pytest.mark.parametrize(('name', 'prefix'), CASES)
def test_both_published_spellings(tmp_path, name, prefix):
  def rename(tensors):
    old = 'model.' if prefix.startswith('model.') else ''
    named = {
      prefix + k.removeprefix(old) if k.startswith(old) else k: v
      for k, v in plain(tensors).items()
    }
    return named | {f'{x}y': np.zeros(3, np.float32) for x in TOWER}

  wrap = None
  if 'text_config' not in values_of(name) and name != 'qwen2_vl':
    # A fixture of the decoder alone.
    wrap = lambda config: {'model_type': name, 'text_config': config}
  path = altered(tmp_path, name, wrap, rename)
  config, params = load_checkpoint(path)
  want_config, want = load_checkpoint(GOLDEN / name)
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize(
  ('name', 'prefix'),
  [('qwen2_vl', ''), ('qwen3_vl', ''), ('mistral3', 'language_model.')],
)
@pytest.mark.parametrize('difference', [0, 1])
def test_a_tied_head_that_is_stored_again(tmp_path, name, prefix, difference):
  def tie(values):
    inner = values.get('text_config', values)
    inner['tie_word_embeddings'] = values['tie_word_embeddings'] = True
    return values

  def copy(tensors):
    (table,) = (k for k in tensors if k.endswith('embed_tokens.weight'))
    head = np.asarray(tensors[table] + difference, np.float32)
    return tensors | {f'{prefix}lm_head.weight': head}

  path = altered(tmp_path, name, tie, copy)
  if difference:
    with pytest.raises(ValueError, match='lm_head.weight differs from'):
      load_checkpoint(path)
  else:
    config, params = load_checkpoint(path)
    assert config.tied and 'head' not in params


def test_ids_of_images_are_refused_where_the_vocabulary_has_them():
  values = values_of('qwen3_vl')
  assert parse_config(values).refused_ids == ()  # the published ids are larger
  ids = {'image_token_id': 7, 'video_token_id': 9}
  config = parse_config(values | ids)
  assert config.refused_ids == (7, 9)
  with pytest.raises(ValueError, match='the id 9, which stands for an image'):
    kvjax.forward(config, {}, jnp.asarray([[1, 9]]))
  text = values_of('mistral3')
  del text['image_token_index']
  assert parse_config(text).refused_ids == (10,)  # the published default


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    ('qwen2_vl', {'head_dim': 6}, 'head_dim=6.*supported: 4'),
    ('qwen2_vl', {'image_token_id': -1}, 'image_token_id=-1'),
    ('mistral3', {'text_config': {'model_type': 'mistral4'}}, 'mistral4'),
    ('mistral3', {'text_config': None}, "no 'text_config'"),
    ('qwen3_vl', {'text_config': None}, "no 'text_config'"),
    (
      'qwen3_vl',
      {'text_config': {'use_sliding_window': True}},
      'use_sliding_window=True',
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(name, change, message):
  with pytest.raises(ValueError, match=message):
    parse_config(values_of(name) | change)


@pytest.mark.parametrize('name', ['qwen2_vl', 'qwen3_vl', 'mistral3'])
def test_a_whole_model_is_not_written(tmp_path, name):
  config, params = load_checkpoint(GOLDEN / name)
  for like in (name, GOLDEN / name):
    with pytest.raises(ValueError, match='leaves out.*Give like='):
      kvjax.save_checkpoint(tmp_path / 'x', config, params, like=like)
  assert not list(tmp_path.iterdir())
