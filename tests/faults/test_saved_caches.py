"""Saved caches that are damaged or forged, and paths that cannot be written.

Two caches of 1 row with 3 tokens: a dense one of 8 slots, and a paged one of 4
pages of 2 tokens. Only the digest notices a change of a key. Files of format 1
have no digest, so the checks of the arrays themselves are tried on these.
"""

import dataclasses
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import kvjax
from kvjax.checkpoints.prompt_cache import save
from kvjax.checkpoints.prompt_cache.digest import DIGEST, UNSIGNED, sign
from tests.checkpoints.writing import GOLDEN


@pytest.fixture(scope='module')
def model():
  return kvjax.load_checkpoint(GOLDEN / 'qwen2')


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
  """Returns the bytes of three saved caches by name."""
  path = tmp_path_factory.mktemp('saved') / 'cache'
  draw, files = np.random.default_rng(0), {}
  for name, kind in {
    'dense': kvjax.Dense(),
    'paged': kvjax.Paged(page=2),
    'ring': kvjax.Ring(window=4),
  }.items():
    cache = kvjax.init_cache(model[0], 1, 8, kinds=kind)
    (book,) = cache.books
    positions = np.asarray(book.positions).reshape(-1).copy()
    positions[:3] = [0, 1, 2]
    positions = jnp.asarray(positions.reshape(book.positions.shape))
    book = dataclasses.replace(book, positions=positions)
    if name == 'paged':
      book = dataclasses.replace(
        book,
        table=jnp.asarray([[0, 1, -1, -1]], jnp.int32),
        references=jnp.asarray([1, 1, 0, 0], jnp.int32),
      )
    cache = dataclasses.replace(
      cache,
      length=jnp.asarray([3], jnp.int32),
      books=(book,),
      stores=jax.tree.map(
        lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), cache.stores
      ),
    )
    kvjax.save_cache(path, cache, *model)
    files[name] = path.read_bytes()
  return files


def put(name, index, value):
  """Returns a change of one element of an array."""

  def change(written, arrays):
    arrays[name].reshape(-1)[index] = value

  return change


def byte(name, index, flip):
  """Returns a change of one byte of an array, by an exclusive or."""

  def change(written, arrays):
    arrays[name].reshape(-1).view(np.uint8)[index] ^= flip

  return change


def exchange(first, second):
  def change(written, arrays):
    arrays[first], arrays[second] = arrays[second], arrays[first]

  return change


def say(*keys, value):
  """Returns a change of the metadata at a path of keys."""

  def change(written, arrays):
    *parents, last = keys
    for key in parents:
      written = written[key]
    written[last] = value

  return change


def nested(depth, value=None):
  for _ in range(depth):
    value = [value]
  return value


# A change of the arrays that leaves the digest as it was.
DAMAGED = {
  'a sign bit of a key': byte('stores.0.key', 3, 0x80),
  'an exponent bit of a key': byte('stores.0.key', 3, 0x40),
  'keys and values exchanged': exchange('stores.0.key', 'stores.0.value'),
  'another length': put('length', 0, 2),
  'a flag of overflow': put('overflow', 0, True),
}

# Arrays that contradict each other, with a digest and without.
ARRAYS = {
  'length of 7, 3 tokens': (put('length', 0, 7), 'every token of the row'),
  'length of -5': (put('length', 0, -5), r'length=\[-5\] must not be neg'),
  'length of 2^31 - 1': (put('length', 0, 2**31 - 1), 'exceeds the 8 tokens'),
  'length of 10^6': (put('length', 0, 10**6), 'exceeds the 8 tokens'),
  'position 99': (put('books.0.positions', 0, 99), '-1 or from 0 to'),
  'position -7': (put('books.0.positions', 0, -7), '-1 or from 0 to'),
  'positions all 2': (
    put('books.0.positions', slice(0, 3), 2),
    'must not hold a token twice',
  ),
  'overflow of 0xff': (byte('overflow', 0, 0xFF), 'neither 0 nor 1'),
}
PAGES = {
  'page 10^9': (put('books.0.table', 0, 10**9), 'a page of the pool, 0 to 3'),
  'page -5': (put('books.0.table', 0, -5), 'a page of the pool, 0 to 3'),
  'references of 0': (put('books.0.references', slice(0, 2), 0), 'must count'),
  'a page too many': (put('books.0.table', 2, 2), 'that its length needs'),
  'one page twice': (put('books.0.table', 1, 0), 'must count'),
  'tokens in a free page': (
    put('books.0.positions', 5, 1),
    'in a page that no row has',
  ),
}
RINGS = {
  'length of 7, 3 tokens': (put('length', 0, 7), 'the newest token'),
  'length of 2^31 - 1': (put('length', 0, 2**31 - 1), 'the newest token'),
}
METADATA = {
  'format true': (say('format', value=True), 'format True is not 1 or 2'),
  'format 3': (say('format', value=3), 'format 3 is not 1 or 2'),
  'capacity -1': (say('layout', 'capacity', value=-1), 'capacity=-1 must be'),
  'book 5': (say('layout', 'books', 0, value=5), 'books.0 is 5, not 0'),
  'book -1': (say('layout', 'books', 0, value=-1), 'books.0 is -1, not 0'),
  'no books': (say('layout', 'books', value=[]), 'books'),
  'no stores': (say('layout', 'memories', value=[]), 'no layer stores'),
  'stores of null': (say('layout', 'memories', value=None), 'is a NoneType'),
  'a store of null': (say('layout', 'memories', 0, value=None), 'stores.0 is'),
  'learned positions': (
    say('layout', 'positions', value=2),
    'layout.positions is 2, not 0',
  ),
  'rotary length': (
    say('layout', 'rotary_length', value=-2),
    'rotary_length=-2 must be at least 0',
  ),
  'slots of null': (
    say('layout', 'memories', 0, 'kind', 'slots', value=None),
    'slots is None, not 8',
  ),
  'a tuple for a kind': (
    say('layout', 'memories', 0, 'kind', value=[1]),
    'LayerStore.kind=',
  ),
  'codecs of evil names': (
    say('layout', 'memories', 0, 'codecs', 0, 0, value='evil'),
    "no layer has a stream 'evil'",
  ),
  'a tuple for a codec': (
    say('layout', 'memories', 0, 'codecs', 0, 1, value=[]),
    r'codecs.0.1 is \[\], not Plain',
  ),
  'a codec nested 900 deep': (
    say('layout', 'memories', 0, 'codecs', 0, 1, value=nested(900)),
    'nested too deeply|codec',
  ),
  'a dtype of a number': (
    say('layout', 'memories', 0, 'dtype', value=5),
    'is no dtype',
  ),
  'a layout of another type': (
    say('layout', value={'type': 'Plain'}),
    'its layout is a Plain',
  ),
  'a layout of null': (say('layout', value=None), 'is a NoneType'),
  'source garbage': (say('source', value=[1, 2, 3]), r'source is \[1, 2, 3\]'),
  'source of a decoder': (
    say('source', value=[4, 'float32']),
    'a model without an encoder',
  ),
  'config nested': (say('config', value=nested(800)), 'other config|nested'),
}
TEXTS = {
  'deep nesting': ('[' * 100_000, 'nested too deeply'),
  'an integer of 5000 digits': ('{"format": 1' + '0' * 5000, 'is no JSON'),
  'a list': ('[1]', 'holds no JSON object'),
  'a key twice': ('{"format": 1, "format": 1}', "'format' is there twice"),
}


def unchanged(written, arrays):
  pass


@pytest.fixture
def load(model, tmp_path, files):
  """Returns a function that changes a file and loads it.

  Format 2 gets the digest that its content needs, or keeps the old one.
  """

  def change_and_load(name, change, *, form, signed=True, text=None):
    path = tmp_path / 'cache'
    path.write_bytes(files[name])
    with safetensors.safe_open(path, 'np') as file:
      metadata = file.metadata()
    written, arrays = json.loads(metadata[save.KEY]), load_file(path)
    written['format'] = form
    change(written, arrays)
    metadata[save.KEY] = json.dumps(written) if text is None else text
    if form == 1:
      del metadata[DIGEST]
    elif signed:
      metadata[DIGEST] = UNSIGNED
    save_file(arrays, path, metadata)
    if form != 1 and signed:
      sign(path)
    return kvjax.load_cache(path, *model)

  return change_and_load


@pytest.mark.parametrize('form', [1, 2])
@pytest.mark.parametrize('name', ['dense', 'paged', 'ring'])
def test_an_unchanged_file_loads(load, name, form):
  assert load(name, unchanged, form=form).length.tolist() == [3]


@pytest.mark.parametrize('change', DAMAGED.values(), ids=DAMAGED)
def test_the_digest_notices(load, change):
  with pytest.raises(ValueError, match='cache is damaged: its SHA-256'):
    load('dense', change, form=2, signed=False)


@pytest.mark.parametrize('form', [1, 2])
@pytest.mark.parametrize(
  'name, change, message',
  [
    pytest.param(name, change, message, id=f'{name}-{what}')
    for name, table in {
      'dense': ARRAYS | METADATA,
      'paged': PAGES,
      'ring': RINGS,
    }.items()
    for what, (change, message) in table.items()
  ],
)
def test_content_that_contradicts_itself(load, form, name, change, message):
  with pytest.raises(ValueError, match=f'/cache.*({message})'):
    load(name, change, form=form)


@pytest.mark.parametrize('text, message', TEXTS.values(), ids=TEXTS)
def test_metadata_that_is_no_object(load, text, message):
  with pytest.raises(ValueError, match=f'/cache.* {message}'):
    load('dense', unchanged, form=2, text=text)


def test_a_capacity_beyond_the_slots_is_harmless(load):
  """`init_cache(config, 1, 10, kinds=Dense(slots=8))` makes such a cache."""
  cache = load('dense', say('layout', 'capacity', value=10), form=1)
  assert cache.layout.limit == 8


@pytest.mark.parametrize('name', ['dense', 'paged'])
def test_every_byte_counts(model, files, name, tmp_path, monkeypatch):
  """A flipped bit is refused in every byte of the header and of the arrays."""
  prints = save.fingerprint(model[1])
  monkeypatch.setattr(save, 'fingerprint', lambda params: prints)
  path, whole = tmp_path / 'cache', files[name]
  draw = np.random.default_rng(0)
  # Every 41st byte from a drawn one on: a load takes 20 ms.
  for index in range(draw.integers(41), len(whole), 41):
    changed = bytearray(whole)
    changed[index] ^= 1 << draw.integers(8)
    path.write_bytes(changed)
    with pytest.raises(ValueError, match='cache'):
      kvjax.load_cache(path, *model)


def test_format_1_is_no_way_around_the_digest(load):
  with pytest.raises(ValueError, match='damaged: metadata of format 1 is'):
    load('dense', say('format', value=1), form=2)


def test_a_pipe_is_not_waited_for(model, tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='pipe is there and no regular file'):
    kvjax.load_cache(tmp_path / 'pipe', *model)


def test_a_pool_keeps_its_pages_without_their_rows(model, tmp_path):
  """A cache of one row of two still has the pool of two."""
  cache = kvjax.init_cache(model[0], 2, 8, kinds=kvjax.Paged(page=2))
  kvjax.save_cache(tmp_path / 'x', kvjax.take(cache, [1]), *model)
  loaded = kvjax.load_cache(tmp_path / 'x', *model)
  assert loaded.books[0].references.shape == (8,)
  with safetensors.safe_open(tmp_path / 'x', 'np') as file:
    metadata = file.metadata() | {DIGEST: UNSIGNED}
  arrays = load_file(tmp_path / 'x')
  arrays['stores.0.key'] = arrays['stores.0.key'][:, :4].copy()
  save_file(arrays, tmp_path / 'x', metadata)
  sign(tmp_path / 'x')
  with pytest.raises(ValueError, match='stores.0 must have the 8 pages of bo'):
    kvjax.load_cache(tmp_path / 'x', *model)


@pytest.fixture
def cache(model):
  return kvjax.init_cache(model[0], 1, 8)


def make_link(path):
  path.symlink_to(path.with_name('nowhere'))
  path.with_name('nowhere').symlink_to(path)


@pytest.mark.parametrize(
  'make', [pathlib.Path.mkdir, os.mkfifo, make_link], ids=lambda f: f.__name__
)
def test_what_is_no_file_is_not_replaced(model, cache, tmp_path, make):
  make(tmp_path / 'there')
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError, match='there is there and no regular file'):
    kvjax.save_cache(tmp_path / 'there', cache, *model)
  assert sorted(tmp_path.iterdir()) == before
  assert not (tmp_path / 'there').is_file()


def test_a_device_is_not_replaced(model, cache):
  with pytest.raises(ValueError, match='/dev/full is there and no regular'):
    kvjax.save_cache('/dev/full', cache, *model)
  assert pathlib.Path('/dev/full').is_char_device()


def test_a_link_stays_and_its_target_is_replaced(model, cache, tmp_path):
  (tmp_path / 'folder').mkdir()
  target, link = tmp_path / 'folder' / 'target', tmp_path / 'link'
  target.write_bytes(b'old')
  link.symlink_to(target)
  kvjax.save_cache(link, cache, *model)
  assert link.is_symlink()
  assert kvjax.load_cache(target, *model).layout == cache.layout
  assert sorted(tmp_path.rglob('*')) == [target.parent, target, link]


def test_threads_save_one_path(model, cache, tmp_path):
  def save_some():
    for _ in range(5):
      kvjax.save_cache(tmp_path / 'one', cache, *model)

  with ThreadPoolExecutor(4) as pool:
    calls = [pool.submit(save_some) for _ in range(4)]
  assert not any(call.exception() for call in calls)
  assert [x.name for x in tmp_path.iterdir()] == ['one']
  kvjax.load_cache(tmp_path / 'one', *model)


def test_a_long_name_is_saved(model, cache, tmp_path):
  kvjax.save_cache(tmp_path / ('n' * 254), cache, *model)


def test_a_full_disk_is_one_line(model, cache, tmp_path, monkeypatch):
  def fail(arrays, path, metadata):
    raise safetensors.SafetensorError('No space left on device (os error 28)')

  monkeypatch.setattr(save, 'save_file', fail)
  with pytest.raises(OSError, match='/one cannot be written: No space left'):
    kvjax.save_cache(tmp_path / 'one', cache, *model)
  assert not list(tmp_path.iterdir())
