"""A prompt read whole, of which some tokens stay: equal to a dense cache whose
other positions are hidden, head by head, in every call that follows.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.testing import poison
from tests.compiler import as_users_do
from tests.contract.oracle import Given, Oracle
from tests.contract.table import (
  LENGTH,
  SCORES,
  VARIANTS,
  VOCAB,
  WIDTH,
  Cell,
  Row,
  Zero,
  draw,
  text,
)
from tests.contract.test_product import on_clear_numbers

OF = {variant.name: variant for variant in VARIANTS}
BUDGET, SLACK, FIRST, LAST = 8, 3, 2, 3
PROMPT = np.asarray([15, 12, 4])
CALLS = (15, 3, 1, 1, 1, 1, 1, 12, 1, 1)  # tokens; the first is ragged


def kind_of(score, **more) -> kvjax.Bounded:
  return kvjax.Bounded(BUDGET, score, SLACK, protect=(FIRST, LAST), **more)


def cell_of(variant, kind, codec=None) -> Cell:
  return Cell(OF[variant], Row('', kind, None, 0, True), codec, '')


CELLS = {
  f'gqa_{name}': cell_of('gqa', kind_of(score))
  for name, score in SCORES.items()
} | {
  f'{variant}_{name}{"_int8" * (codec is not None)}{"_shared" * (not apart)}': (
    cell_of(variant, kind_of(SCORES[name], per_head=apart), codec)
  )
  for variant, name, codec, apart in (
    ('gqa', 'snapkv', kvjax.Int8(), True),
    ('gqa', 'snapkv', None, False),
    ('gqa', 'expected_attention', kvjax.Int8(), False),
    ('gqa', 'key_diff', kvjax.Int8(), False),
    ('mqa', 'lagkv', kvjax.Int8(), True),
    ('mla_absorbed', 'key_diff', kvjax.Int8(), True),
    ('mla_expanded', 'heavy_hitters', kvjax.Int8(), True),
    ('mla_expanded', 'expected_attention', None, True),
  )
}


@pytest.mark.parametrize('name', CELLS)
def test_equals_a_dense_cache_whose_other_positions_are_hidden(name):
  on_clear_numbers(lambda seed: check(CELLS[name], seed))


def check(cell: Cell, seed: int) -> None:
  params, tokens = draw(cell.config, seed), text(seed, length=sum(CALLS))
  rows = [
    np.concatenate([row[:n], row[CALLS[0] :]])
    for row, n in zip(tokens, PROMPT, strict=True)
  ]
  total, heads = max(map(len, rows)), stored_heads(cell)
  seen = np.zeros((3, heads, total, total), bool)
  found = [np.zeros((0, 19))] * 3
  cache, dense = cell.init(3), dense_like(cell).init(3, 64)
  live, start = np.zeros(3, int), 0
  for call in CALLS:
    counts = np.where(start == 0, PROMPT, call)
    piece = tokens[:, start : start + call]
    before = cache
    logits, cache = cell.extend(params, poison(cache), piece, counts)
    if start == 0:
      wanted, _ = cell.extend(params, dense, piece, counts)
      for row, n in enumerate(counts):  # kernels may cut slots elsewhere
        limit = 1e-6 * np.abs(wanted).max()
        np.testing.assert_allclose(
          logits[row, :n], wanted[row, :n], rtol=0, atol=limit
        )
    start += call
    live = np.asarray([survivors(*x) for x in zip(live, counts, strict=True)])
    check_book(cache, live, counts)
    mark_seen(seen, before, cache, counts)
    for row, n in enumerate(counts):
      found[row] = np.concatenate([found[row], np.asarray(logits[row, :n])])
  for row, of_row in enumerate(rows):
    n = len(of_row)
    rule = Given(seen[row, :, :n, :n])
    wanted, _ = cell.oracle(params, rule).row(of_row)
    limit = 1e-6 * np.abs(wanted).max()
    np.testing.assert_allclose(found[row], wanted, rtol=0, atol=limit)


def test_every_exported_score_has_a_row():
  exported = {
    x
    for x in vars(kvjax).values()
    if isinstance(x, type) and issubclass(x, kvjax.Score)
  }
  assert exported - {kvjax.Score} == {type(x) for x in SCORES.values()}


def test_every_score_ranks_latents_and_takes_nothing_back():
  """A model of latent attention, a score in each of its layers."""
  kinds = [kind_of(score) for score in SCORES.values()]
  attention = OF['mla_absorbed'].attention
  layers = (kvjax.Layer(attention, Zero()),) * len(kinds)
  config = kvjax.ModelConfig(VOCAB, WIDTH, layers)
  params, tokens = draw(config, 2), text(2, length=17)
  cache = kvjax.init_cache(config, 3, 23, kinds=kinds)
  seen = np.zeros((len(kinds), 3, 1, 17, 17), bool)
  found = [np.zeros((0, VOCAB))] * 3
  options = kvjax.DecodeOptions(form='absorbed')
  for start, width in ((0, 15), (15, 1), (16, 1)):
    counts = PROMPT if start == 0 else np.ones(3, int)
    piece = jnp.asarray(tokens[:, start : start + width])
    before = cache
    logits, cache = kvjax.extend(
      config, params, poison(cache), piece, counts, options=options
    )
    for layer, of_layer in enumerate(seen):
      mark_seen(of_layer, before, cache, counts, layer)
    for row, n in enumerate(counts):
      found[row] = np.concatenate([found[row], np.asarray(logits[row, :n])])
  for row, n in enumerate(PROMPT):
    of_row = np.concatenate([tokens[row, :n], tokens[row, 15:]])
    rules = tuple(Given(x[row, :, : n + 2, : n + 2]) for x in seen)
    wanted, _ = Oracle(config, params, rules).row(of_row)
    limit = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(found[row], wanted, rtol=0, atol=limit)
  for kind, book in zip(kinds, cache.books, strict=True):
    assert (kind.shortest_rewind(book, cache.length) == cache.length).all()
  with pytest.raises(ValueError, match='cannot'):
    kvjax.rewind(cache, cache.length - 1)


def survivors(live: int, count: int) -> int:
  """Returns the tokens of a row after a call: the rule, in Python."""
  if live + count <= BUDGET + SLACK:
    return live + count
  return BUDGET


def check_book(cache, live, counts):
  positions = np.asarray(cache.books[0].positions)
  assert ((positions >= 0).sum(-1) == live[:, None]).all()
  for row, length in enumerate(np.asarray(cache.length)):
    stay = {*range(FIRST), *range(length - LAST, length)}
    for head in positions[row]:
      assert stay <= set(head.tolist())


def mark_seen(seen, before, after, counts, layer=0):
  """Marks what each query of a call saw, from the books around it."""
  for row, n in enumerate(counts):
    length = int(after.length[row])
    reads_whole = counts.max() > BUDGET - FIRST
    book = before if reads_whole else after
    positions = np.asarray(book.books[layer].positions)[row]
    positions = np.broadcast_to(positions, (seen.shape[1], positions.shape[-1]))
    for query in range(length - n, length):
      for head, held in enumerate(positions):
        old = held[(held >= 0) & (held <= query)]
        seen[row, head, query, old] = True
      if reads_whole:
        seen[row, :, query, length - n : query + 1] = True


def stored_heads(cell: Cell) -> int:
  return next(iter(cell.variant.attention.streams().values())).heads


def dense_like(cell: Cell) -> Cell:
  return dataclasses.replace(cell, row=Row('', kvjax.Dense(), None, 0, False))


@functools.cache
def dense_run(score_name: str):
  """Returns config, params, tokens, a dense cache and its weights."""
  cell = cell_of('gqa', kind_of(SCORES[score_name]))
  params = draw(cell.config, 3)
  # No token twice: equal keys have equal norms.
  rng = np.random.default_rng(3)
  tokens = np.stack([rng.permutation(VOCAB)[:LENGTH] for _ in range(3)])
  cache = dense_like(cell).init(3, 64)
  _, cache, ((weights, _),) = kvjax.extend(
    cell.config,
    params,
    cache,
    jnp.asarray(tokens),
    PROMPT,
    attention_layers=(0,),
  )
  return cell, params, tokens, cache, np.asarray(weights)


def kept(cell, params, tokens, kind, lengths=PROMPT):
  cell = dataclasses.replace(cell, row=Row('', kind, None, 0, True))
  _, cache = cell.extend(params, cell.init(3), tokens, lengths)
  return np.sort(np.asarray(cache.books[0].positions), axis=-1)[..., -BUDGET:]


def best(scores: np.ndarray, n: int) -> list[int]:
  return sorted(np.argsort(-scores, kind='stable')[:n].tolist())


def test_each_head_keeps_its_own_keys():
  """Survivors by NumPy, from the keys of a dense cache."""
  cell, params, tokens, dense, _ = dense_run('key_norm')
  kind = kvjax.Bounded(BUDGET, kvjax.KeyNorm(), protect=(0, 0))
  found = kept(cell, params, tokens, kind)
  norms = -np.linalg.norm(np.asarray(dense.stores[0]['key']), axis=-1)
  for row in (0, 1):
    wanted = [best(head[: PROMPT[row]], BUDGET) for head in norms[row]]
    assert found[row].tolist() == wanted
    assert len(set(map(tuple, wanted))) == 3  # heads differ
  assert (found[2, :, -4:] == np.arange(4)).all()  # a short row loses nothing


@pytest.mark.parametrize('apart', [True, False])
def test_snapkv_pools_what_its_window_weighed(apart):
  """Survivors by NumPy, from the weights of a dense cache, ragged rows."""
  cell, params, tokens, _, weights = dense_run('snapkv')
  score = kvjax.SnapKV(window=3, pool=3)
  kind = kvjax.Bounded(BUDGET, score, per_head=apart, protect=(0, 0))
  found = kept(cell, params, tokens, kind)
  for row in (0, 1):
    n = int(PROMPT[row])
    part = weights[row, :, n - 3 : n, : n - 3].mean(axis=1)  # [N, n - 3]
    part = part.reshape(3, 2, -1).mean(axis=1)
    if not apart:
      part = part.mean(axis=0, keepdims=True)
    padded = np.pad(part, ((0, 0), (1, 1)))
    pooled = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    window = [n - 3, n - 2, n - 1]
    wanted = [best(head, BUDGET - 3) + window for head in pooled]
    assert found[row].tolist() == wanted


def test_a_question_does_not_rank_the_prompt():
  """SnapKV keeps each token's score; what comes later goes last."""
  cell, params, tokens, _, _ = dense_run('snapkv')
  kind = kvjax.Bounded(BUDGET, SCORES['snapkv'], 4, protect=(0, 0))
  cell = dataclasses.replace(cell, row=Row('', kind, None, 0, True))
  _, cache = cell.extend(params, cell.init(3), tokens, PROMPT)
  _, asked = cell.extend(params, cache, tokens[:, :3], np.full(3, 3))

  def totals(cache):
    book = cache.books[0]
    return {
      (row, head, int(p)): float(book.total[row, head, slot])
      for row, head, slot in np.argwhere(np.asarray(book.positions) >= 0)
      for p in [book.positions[row, head, slot]]
    }

  old, new = totals(cache), totals(asked)
  assert {key: new[key] for key in old.keys() & new.keys()} == {
    key: old[key] for key in old.keys() & new.keys()
  }
  assert all(new[key] == np.inf for key in new.keys() - old.keys())
  for step in range(12):  # all of the prompt goes first, then the oldest
    _, asked = cell.extend(params, asked, tokens[:, step : step + 1], [1] * 3)
  length = int(asked.length[0])
  newest = np.sort(np.asarray(asked.books[0].positions)[0], axis=-1)[:, -8:]
  assert (newest == np.arange(length - 8, length)).all()


@pytest.mark.parametrize('name', ['snapkv', 'heavy_hitters', 'lagkv'])
def test_a_row_of_a_batch_is_the_row_alone(name):
  """Ragged calls, one of them longer than a warm row has room for."""
  cell = cell_of('gqa', kind_of(SCORES[name]))
  params, tokens = draw(cell.config, 1), text(1, length=41)
  counts = ([15, 9, 3], [12, 2, 7], [1, 1, 1], [0, 12, 12], [1, 1, 1])
  widths = [max(c) for c in counts]
  starts = np.cumsum([0, *widths])
  cache = cell.init(3)
  alone = [cell.init(1) for _ in range(3)]
  for count, start, width in zip(counts, starts[:-1], widths, strict=True):
    piece = tokens[:, start : start + width]
    logits, cache = cell.extend(params, cache, piece, np.asarray(count))
    for row, n in enumerate(count):
      if not n:
        continue
      own = piece[row : row + 1, :n]
      wanted, alone[row] = cell.extend(params, alone[row], own, np.asarray([n]))
      limit = 1e-5 * np.abs(wanted).max()
      np.testing.assert_allclose(logits[row, :n], wanted[0], rtol=0, atol=limit)
      np.testing.assert_array_equal(
        np.sort(cache.books[0].positions[row], axis=-1),
        np.sort(alone[row].books[0].positions[0], axis=-1),
      )


def test_a_score_of_keys_allocates_no_statistic():
  layer = kvjax.Layer(OF['gqa'].attention, kvjax.MLP(11))
  config = kvjax.ModelConfig(VOCAB, 13, (layer,))
  sizes = []
  for score in (kvjax.KeyNorm(), kvjax.HeavyHitters()):
    options = {'batch_size': 2, 'capacity': 23, 'kinds': kind_of(score)}
    cache = kvjax.init_cache(config, **options)
    sizes.append(sum(x.nbytes for x in jax.tree.leaves(cache)))
    assert kvjax.memory.plan(config, **options).cache_bytes == sizes[-1]
    assert (cache.books[0].total is None) == (len(sizes) == 1)
  bare, full = sizes
  assert full - bare == 4 * 2 * 3 * (BUDGET + SLACK)


AS_BY_DEFAULT = {name: type(score)() for name, score in SCORES.items()}


@pytest.mark.parametrize(
  ('name', 'codec'),
  [(name, None) for name in SCORES]
  + [(name, kvjax.Int8()) for name in ('snapkv', 'key_diff')],
)
def test_a_prefill_of_survivors_never_holds_a_dense_store(name, codec):
  """Temporaries of a dense prefill, and at most 2 layers of keys and values.

  The cache has an eighth of the tokens, and every byte of it is written in
  place; no leaf is copied to be read first.
  """
  kind = kvjax.Bounded(2048 // 8, AS_BY_DEFAULT[name], slack=32)
  of_layer = 2 * 4 * 32 * 4 * 2048
  assert temporaries(kind, codec) <= dense_temporaries(codec) + 2 * of_layer


@functools.cache
def dense_temporaries(codec):
  return temporaries(kvjax.Dense(), codec)


def temporaries(kind, codec) -> int:
  """Returns those of a prompt of 2,048 tokens in two layers."""
  tokens = 2048
  attention = kvjax.Grouped(4, 4, 32, rotary=kvjax.Rotary(32))
  layer = kvjax.Layer(attention, kvjax.MLP(128))
  config = kvjax.ModelConfig(31, 64, (layer,) * 2)
  init = functools.partial(
    kvjax.init_cache, config, 1, tokens + 32, kinds=kind, codec=codec
  )
  cache = jax.eval_shape(init)
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  prefill = jax.jit(functools.partial(kvjax.prefill, config), donate_argnums=1)
  ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  compiled = as_users_do(prefill.lower(params, cache, ids))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  measured = kvjax.memory.measure(compiled)
  assert measured.alias == size
  shapes = {
    ','.join(map(str, x.shape))
    for x in jax.tree.leaves(cache.stores)
    if x.ndim == 4
  }
  for shape in shapes:
    assert not re.search(rf'\[{shape}\]\S* copy\(', compiled.as_text())
  return measured.temporaries
