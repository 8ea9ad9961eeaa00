"""Checkpoints that kvjax writes: the same to the bit, refused, never halved."""

import dataclasses
import importlib.util
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import LongRope
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.load import read_config
from kvjax.checkpoints.saving import save
from kvjax.streams.visibility import Visibility
from tests.checkpoints.families import CASES
from tests.checkpoints.writing import GOLDEN, altered, read
from tests.facts import tiny

CHECKPOINTS = sorted(path.name for path in GOLDEN.iterdir())
WHOLE = [  # of which kvjax reads all parts
  name
  for name in CHECKPOINTS
  if FAMILIES[read_config(GOLDEN / name)['model_type']].text is None
]


def assert_same(params, want):
  assert jax.tree.structure(params) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(
      np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8)
    )


def small(**fields):
  config = kvjax.ModelConfig(
    vocab_size=19,
    width=8,
    layers=(kvjax.Layer(kvjax.Grouped(2, 1, 4), kvjax.MLP(12)),),
  )
  config = dataclasses.replace(config, **fields)
  return config, kvjax.init_params(config, jax.random.key(3))


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_every_family_in_the_own_layout(tmp_path, name):
  config, params = kvjax.load_checkpoint(GOLDEN / name)
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  found, again = kvjax.load_checkpoint(tmp_path / 'x')
  assert found == config == kvjax.load_config(tmp_path / 'x')
  assert_same(again, params)


@pytest.mark.parametrize('name', WHOLE)
def test_the_layout_of_a_checkpoint_is_written_to_the_bit(tmp_path, name):
  config, params = kvjax.load_checkpoint(GOLDEN / name)
  path = tmp_path / 'x'
  kvjax.save_checkpoint(path, config, params, like=GOLDEN / name)
  found, again = kvjax.load_checkpoint(path)
  assert found == config
  assert_same(again, params)
  files = sorted((GOLDEN / name).glob('*.safetensors'))
  want = {k: v for file in files for k, v in read(file).items()}
  got = read(path / 'model.safetensors')
  assert got.keys() == want.keys()
  for key, tensor in want.items():
    assert got[key].dtype == tensor.dtype and got[key].shape == tensor.shape
    assert got[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize('name', WHOLE)
def test_the_layout_of_a_family_by_its_name(tmp_path, name):
  config, params = kvjax.load_checkpoint(GOLDEN / name)
  family = read_config(GOLDEN / name)['model_type']
  if not CASES[name].by_name:
    with pytest.raises(ValueError, match='like=.*checkpoint directory'):
      kvjax.save_checkpoint(tmp_path / 'x', config, params, like=family)
    assert not list(tmp_path.iterdir())
    return
  kvjax.save_checkpoint(tmp_path / 'x', config, params, like=family)
  assert read_config(tmp_path / 'x')['model_type'] == family
  found, again = kvjax.load_checkpoint(tmp_path / 'x')
  assert found == config
  assert_same(again, params)


def test_a_checkpoint_from_before_a_field_was_added(tmp_path):
  """Its config.json has no such field, which then has its default."""
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  file = tmp_path / 'x' / 'config.json'
  values = json.loads(file.read_text())
  attention = values['config']['layers'][0]['attention']
  for part, names in (
    (attention, ('qk_norm_after', 'clip', 'temperature')),
    (values['config']['norm'], ('weighted',)),
  ):
    for name in names:
      del part[name]
  file.write_text(json.dumps(values))
  found, again = kvjax.load_checkpoint(tmp_path / 'x')
  assert found == config
  assert_same(again, params)


def test_choices_of_recent_models(tmp_path):
  """Norms without weights leave empty parts, which no tensor names."""
  config, params = tiny.RECENT, tiny.params(tiny.RECENT)
  params = jax.tree.map(lambda x: x + 0.5, params)  # no number is 0
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  found, again = kvjax.load_checkpoint(tmp_path / 'x')
  assert found == config
  assert jax.tree.structure(again) == jax.tree.structure(params)
  assert_same(again, params)
  ids = tiny.tokens(2, 7)
  want = kvjax.forward(config, params, ids)
  np.testing.assert_array_equal(kvjax.forward(found, again, ids), want)
  kvjax.load_checkpoint(tmp_path / 'x', weights='int8')
  with pytest.raises(ValueError, match="like='llama' has no config.json"):
    kvjax.save_checkpoint(tmp_path / 'y', config, params, like='llama')


def test_choices_that_no_published_family_makes(tmp_path):
  norm = kvjax.Norm(1e-4, centered=True, bias=True)
  rope = LongRope((1.0, 2.0), (3.0, 4.0), original=9, magnitude=1.25)
  layers = (
    kvjax.Layer(
      kvjax.Grouped(4, 2, 4, rotary=kvjax.Rotary(4, scaling=rope), sinks=True),
      kvjax.Experts(4, 2, 5, score='sigmoid', correction=True),
    ),
    kvjax.Layer(
      kvjax.Grouped(
        4, 2, 4, bias=kvjax.Alibi(), visibility=Visibility(window=3)
      ),
      kvjax.MLP(7, 'relu', gated=False, bias=True),
      parallel='separate',
    ),
    kvjax.Layer(
      kvjax.Latent(2, 6, 4, 5, kvjax.Rotary(2), query_rank=3), kvjax.MLP(9)
    ),
    kvjax.Layer(
      kvjax.Grouped(
        4, 2, 4, rotary=kvjax.Rotary(4, scaling=rope), shared_from=0
      ),
      kvjax.MLP(9),
    ),
  )
  config, params = small(
    layers=layers, norm=norm, head_bias=True, positions=11, dtype='bfloat16'
  )
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  found, again = kvjax.load_checkpoint(tmp_path / 'x')
  assert found == config
  assert_same(again, params)
  with pytest.raises(ValueError, match="like='llama' has no config.json"):
    kvjax.save_checkpoint(tmp_path / 'y', config, params, like='llama')


def test_dtype_is_that_of_the_params(tmp_path):
  config, params = small()
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  kvjax.save_checkpoint(tmp_path / 'x', config, narrow)
  assert kvjax.load_config(tmp_path / 'x').dtype == 'bfloat16'
  params['norm']['weight'] = params['norm']['weight'].astype(jnp.float16)
  with pytest.raises(
    ValueError, match=r'norm\.weight is float16.*float32.*Cast'
  ):
    kvjax.save_checkpoint(tmp_path / 'y', config, params)
  wide = jax.tree.map(lambda x: x.astype(jnp.float8_e4m3fn), params)
  with pytest.raises(ValueError, match='float8_e4m3fn.*bfloat16, float16'):
    kvjax.save_checkpoint(tmp_path / 'y', config, wide)


def test_eight_bits_are_refused_or_dequantized(tmp_path):
  config, params = small()
  coded = kvjax.quantize(params)
  with pytest.raises(ValueError, match='is in eight bits.*dequantize'):
    kvjax.save_checkpoint(tmp_path / 'x', config, coded)
  kvjax.save_checkpoint(tmp_path / 'x', config, coded, dequantize=True)
  _, again = kvjax.load_checkpoint(tmp_path / 'x')
  query = coded['layers'][0]['attention']['query']
  want = query.codes.astype(jnp.float32) * query.scale[:, None]
  np.testing.assert_array_equal(again['layers'][0]['attention']['query'], want)


def test_shards_and_their_index(tmp_path, monkeypatch):
  monkeypatch.setattr(save, 'SHARD', 2000)
  config, params = kvjax.load_checkpoint(GOLDEN / 'llama')
  kvjax.save_checkpoint(tmp_path / 'x', config, params, like='llama')
  shards = sorted((tmp_path / 'x').glob('*.safetensors'))
  assert shards[0].name == f'model-00001-of-{len(shards):05}.safetensors'
  tensors = [read(shard) for shard in shards]
  sizes = [[x.nbytes for x in shard.values()] for shard in tensors]
  assert all(len(size) == 1 or sum(size) <= 2000 for size in sizes)
  assert any(len(size) > 1 for size in sizes)
  index = json.loads((tmp_path / 'x/model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(map(sum, sizes))
  assert_same(kvjax.load_checkpoint(tmp_path / 'x')[1], params)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  before = (tmp_path / 'x' / 'model.safetensors').read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  for function in ('save_file', '_write_json'):
    with monkeypatch.context() as patch:
      patch.setattr(save, function, full)
      with pytest.raises(OSError, match='No space'):
        kvjax.save_checkpoint(
          tmp_path / 'x', config, jax.tree.map(jnp.zeros_like, params)
        )
    assert (tmp_path / 'x' / 'model.safetensors').read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ['x']
  rename = save.os.rename

  def once(source, target):
    if str(source).endswith('new'):
      full()
    rename(source, target)

  monkeypatch.setattr(save.os, 'rename', once)
  with pytest.raises(OSError, match='No space'):
    kvjax.save_checkpoint(tmp_path / 'x', config, params)
  assert_same(kvjax.load_checkpoint(tmp_path / 'x')[1], params)
  assert [x.name for x in tmp_path.iterdir()] == ['x']


def test_others_may_read_what_the_umask_lets_them(tmp_path):
  config, params = small()
  old = os.umask(0o027)
  try:
    kvjax.save_checkpoint(tmp_path / 'x', config, params)
  finally:
    os.umask(old)
  modes = {x.name: x.stat().st_mode & 0o777 for x in (tmp_path / 'x').iterdir()}
  assert modes == {'config.json': 0o640, 'model.safetensors': 0o640}
  assert (tmp_path / 'x').stat().st_mode & 0o777 == 0o750


def test_only_a_checkpoint_is_replaced(tmp_path):
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  kvjax.save_checkpoint(tmp_path / 'x', config, zeros)
  assert not kvjax.load_checkpoint(tmp_path / 'x')[1]['embedding'].any()
  (tmp_path / 'x' / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match='no checkpoint.*notes.txt'):
    kvjax.save_checkpoint(tmp_path / 'x', config, params)
  (tmp_path / 'y').mkdir()
  (tmp_path / 'y' / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'no checkpoint.*no config\.json'):
    kvjax.save_checkpoint(tmp_path / 'y', config, params)
  with pytest.raises(ValueError, match='no directory'):
    kvjax.save_checkpoint(tmp_path / 'x' / 'notes.txt', config, params)
  with pytest.raises(FileNotFoundError, match='make it first'):
    kvjax.save_checkpoint(tmp_path / 'no' / 'x', config, params)
  (tmp_path / 'empty').mkdir()
  kvjax.save_checkpoint(tmp_path / 'empty', config, params)


def test_a_directory_of_tokenizer_files_is_copied(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  for name, text in {
    'tokenizer_config.json': '{"chat_template": "{{ 1 }}"}',
    'generation_config.json': '{"eos_token_id": 7}',
    'config.json': '{"eos_token_id": 8, "vocab_size": 5}',
    'optimizer.bin': '',
  }.items():
    (source / name).write_text(text)
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params, tokenizer=source)
  assert sorted(x.name for x in (tmp_path / 'x').iterdir()) == [
    'config.json',
    'generation_config.json',
    'model.safetensors',
    'tokenizer_config.json',
  ]
  assert read_config(tmp_path / 'x')['eos_token_id'] == 8
  assert kvjax.text.stop_tokens(tmp_path / 'x') == (7,)
  with pytest.raises(FileNotFoundError, match='no tokenizer file'):
    kvjax.save_checkpoint(
      tmp_path / 'y', config, params, tokenizer=tmp_path / 'no'
    )
  assert not (tmp_path / 'y').exists()


def test_a_tokenizer_of_kvjax_is_written(tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  (tmp_path / 'source').mkdir()
  words = tokenizers.models.WordLevel({'<s>': 0, 'a': 1, 'b': 2}, '<s>')
  tokenizers.Tokenizer(words).save(str(tmp_path / 'source/tokenizer.json'))
  (tmp_path / 'source/tokenizer_config.json').write_text(
    '{"chat_template": "{{ bos_token }} \u00e9", "bos_token": "<s>"}'
  )
  stops = tmp_path / 'source/generation_config.json'
  stops.write_text('{"eos_token_id": [2, 1]}')
  tokenizer = kvjax.text.load_tokenizer(tmp_path / 'source')
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params, tokenizer)
  again = kvjax.text.load_tokenizer(tmp_path / 'x')
  assert again.encode('b') == [2]
  assert kvjax.text.stop_tokens(tmp_path / 'x') == (2, 1)
  assert again.template.source == tokenizer.template.source
  assert again.template.names == tokenizer.template.names
  # A byte tokenizer has no files, and those of the old one are gone.
  bytes_ = kvjax.text.ByteTokenizer()
  kvjax.save_checkpoint(tmp_path / 'x', config, params, bytes_)
  assert kvjax.text.load_tokenizer(tmp_path / 'x').encode('b') == [98]
  with pytest.raises(ValueError, match='of type object.*load_tokenizer'):
    kvjax.save_checkpoint(tmp_path / 'x', config, params, object())


def test_layouts_that_cannot_be_written(tmp_path):
  config, params = kvjax.load_checkpoint(GOLDEN / 'whisper')
  place = params['layers'][0]['attention']
  place['key_bias'] = place['key_bias'] + 1
  with pytest.raises(ValueError, match=r'no tensor for .*key_bias.*must.* 0'):
    kvjax.save_checkpoint(
      tmp_path / 'x', config, params, like=GOLDEN / 'whisper'
    )
  config, params = kvjax.load_checkpoint(GOLDEN / 'qwen2')
  with pytest.raises(ValueError, match='like=.llama. has no config.json'):
    kvjax.save_checkpoint(tmp_path / 'x', config, params, like=GOLDEN / 'llama')
  for family in 'gemma3', 'llama4':
    wrap = lambda config, family=family: {
      'model_type': family,
      'text_config': config,
    }
    folder = tmp_path / family
    path = altered(folder, family, wrap)
    config, params = kvjax.load_checkpoint(GOLDEN / family)
    for like in path, family:
      with pytest.raises(
        ValueError, match=f'{family}.*leaves out.*{family}_text'
      ):
        kvjax.save_checkpoint(folder / 'x', config, params, like=like)
  with pytest.raises(FileNotFoundError, match='nothing'):
    kvjax.save_checkpoint(tmp_path / 'x', config, params, like='nothing')
  # One config.json, two published spellings: only tensors tell which.
  config, params = kvjax.load_checkpoint(GOLDEN / 't5')
  with pytest.raises(ValueError, match=r'2 names.*DenseReluDense\.wi'):
    kvjax.save_checkpoint(
      tmp_path / 'x', config, params, like=GOLDEN / 't5' / 'config.json'
    )


def test_config_and_params_must_fit(tmp_path):
  config, params = small()
  with pytest.raises(ValueError, match='config makes it'):
    kvjax.save_checkpoint(
      tmp_path / 'x', dataclasses.replace(config, vocab_size=20), params
    )
  with pytest.raises(ValueError, match='outside jit'):
    jax.jit(lambda x: kvjax.save_checkpoint(tmp_path / 'x', config, x))(params)

  class Mine(kvjax.Grouped):
    pass

  layer = kvjax.Layer(Mine(2, 1, 4), kvjax.MLP(12))
  config, params = small(layers=(layer,))
  with pytest.raises(ValueError, match="'Mine' is a type unknown.*of kvjax"):
    kvjax.save_checkpoint(tmp_path / 'x', config, params)
  assert not list(tmp_path.iterdir())


def test_a_damaged_own_checkpoint_is_refused(tmp_path):
  config, params = small()
  kvjax.save_checkpoint(tmp_path / 'x', config, params)
  file = tmp_path / 'x' / 'config.json'
  good = file.read_text()
  for old, new, message in (
    ('"vocab_size": 19', '"vocab_size": 20', r'embedding.*\[19, 8\].*\[20, 8'),
    ('"width": 8', '"width": "8"', "width='8' is a str"),
    ('"tied": false', '"tied": true', 'tensor head .* no place'),
    ('"Grouped"', '"Popen"', "'Popen' is a type unknown"),
    ('"ModelConfig"', '"Norm"', 'Norm.dtype is no field'),
  ):
    assert good.count(old) >= 1
    file.write_text(good.replace(old, new))
    with pytest.raises(ValueError, match=message):
      kvjax.load_checkpoint(tmp_path / 'x')
  file.write_text('{"model_type": "kvjax"}')
  with pytest.raises(ValueError, match='must hold a ModelConfig'):
    kvjax.load_config(tmp_path / 'x')


@pytest.mark.slow
@pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ('torch', 'transformers'))),
  reason='torch and transformers are not installed',
)
@pytest.mark.parametrize(
  'family', ['llama', 'qwen2', 'qwen3', 'mistral', 'gpt2', 'gemma', 'mixtral']
)
def test_transformers_reads_what_was_saved_by_name(tmp_path, family):
  import torch
  import transformers

  config, params = kvjax.load_checkpoint(GOLDEN / family)
  kvjax.save_checkpoint(tmp_path / 'x', config, params, like=family)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'x', experts_implementation='eager'
  )
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
  with torch.no_grad():
    want = model(torch.tensor(tokens)).logits.numpy()
  got = kvjax.forward(config, params, jnp.asarray(tokens))
  np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
