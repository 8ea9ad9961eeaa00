"""The frontier: ceilings from books, protocol, divergences, and a tiny run."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.frontier import caches, contexts, cost, findings, recall
from experiments.reporting.blocks import Heading, Table, markdown
from kvjax.text.tokenizer import ByteTokenizer

CONFIG = kvjax.ModelConfig(
  31,
  8,
  (kvjax.Layer(kvjax.Grouped(2, 1, 4, rotary=kvjax.Rotary(4)), kvjax.MLP(8)),),
)
KEEPS = 'bounded:budget=6,score={},protect=(1, 2)'
ORACLE = KEEPS.format('experiments.frontier.caches:Oracle()')


def part_of(tokens, targets=None, name='recall'):
  tokens = np.asarray(tokens, np.int32)
  targets = np.full_like(tokens, -1) if targets is None else targets
  return contexts.Part(name, tokens, np.asarray(targets, np.int32))


# --- Recall -----------------------------------------------------------------


def hand_made_cache():
  """Two layers of two heads over four pairs; the first layer is a ring's."""
  first = np.array([[0, 6, -1], [5, 6, 7]])
  second = np.array([[[6, -1], [7, 3]], [[6, 7], [7, 8]]])  # 8: of a query
  books = [types.SimpleNamespace(positions=x) for x in (first, second)]
  layout = types.SimpleNamespace(books=(0, 1, -1))
  return types.SimpleNamespace(books=books, layout=layout, batch_size=2)


def test_a_pair_counts_while_any_layer_or_head_has_a_slot_of_it():
  touched = recall.pairs_touched(recall.surviving(hand_made_cache(), 8))
  expected = [[True, True, False, True], [False, False, True, True]]
  np.testing.assert_array_equal(touched, expected)


def test_the_ceiling_is_what_is_left_and_a_guess_for_the_rest():
  touched = np.array([[True, True, False, True], [False, False, True, True]])
  chosen = np.array([[0, 2], [1, 3]])
  right = np.array([[True, True], [False, True]])
  found = recall.judge(right, touched, chosen, chance=0.2)
  ceiling = 5 / 8 + 3 / 8 * 0.2
  assert found['right'] == 0.75
  assert found['ceiling'] == pytest.approx(ceiling)
  sigma = (ceiling * (1 - ceiling) / 4) ** 0.5
  assert found['limit'] == pytest.approx(ceiling + 3 * sigma)
  assert found['lost_queries'] == 2 and found['lost_right'] == 0.5
  sigma = (0.2 * 0.8 / 2) ** 0.5
  assert found['lost_limit'] == pytest.approx(0.2 + 3 * sigma)


def test_pairs_are_drawn_once_each_and_queries_name_them():
  pairs = recall.Pairs(7, (3, 5), 2, 4, 1, 1, 1e-3)
  context, questions, chosen = recall.draw(
    pairs, np.random.default_rng(0), 6, 5, 2
  )
  assert context.shape == (6, 10) and questions.shape == (6, 4)
  for row in range(6):
    keys = context[row, ::2]
    assert len(set(keys)) == 5 and keys.max() < 7
    assert (context[row, 1::2] >= 7).all() and context.max() < 14
    for query, pair in enumerate(chosen[row]):
      answers = questions[row, 2 * query : 2 * query + 2]
      np.testing.assert_array_equal(
        answers, context[row, 2 * pair : 2 * pair + 2]
      )


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ((7, (3, 8), 2), 'growth=.* at most symbols=7'),
    ((7, (3,), 4), 'queries=4 must be at most the 3'),
    ((0, (3,), 2), 'symbols=0'),
  ],
)
def test_pairs_that_cannot_be(values, said):
  with pytest.raises(ValueError, match=said):
    recall.Pairs(*values, 1, 1, 1, 1e-3)


# --- Protocol ---------------------------------------------------------------


@pytest.fixture(scope='module')
def source():
  """Twelve tokens of two contexts, read once."""
  params = kvjax.init_params(CONFIG, jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 31, (2, 12)).astype(np.int32)
  room = caches.Room(capacity=16, following=4)
  return caches.Compressor(CONFIG, params, tokens, room)


FOLLOWS = [part_of([[[1, 2, 3], [4, 5, 6]]]), part_of([[[7, 8, 9], [9, 8, 1]]])]

AT_ONCE = part_of(FOLLOWS[0].tokens, FOLLOWS[0].tokens)


def kept(source, name, part):
  cache, stored = source.compress(caches.Row.of(name), part)
  sizes = caches.Row.of(name).sizes(CONFIG, source.contexts, source.room)
  assert stored == sizes['planned_bytes']
  return cache, np.sort(np.asarray(cache.books[0].positions), axis=-1)


def test_no_score_sees_what_follows_but_the_oracle(source):
  for score in ('key_diff', 'snapkv(window=2,pool=1)'):
    (cache, one), (_, two) = (
      kept(source, KEEPS.format(score), part) for part in FOLLOWS
    )
    assert cache.length.tolist() == [12, 12]
    np.testing.assert_array_equal(one, two)
  kind = kvjax.Bounded(6, kvjax.KeyDiff(), slack=4, protect=(1, 2))
  direct = kvjax.compress(CONFIG, source.params, source.dense, kind)
  _, one = kept(source, KEEPS.format('key_diff'), FOLLOWS[0])
  positions = np.sort(np.asarray(direct.books[0].positions), axis=-1)
  np.testing.assert_array_equal(one, positions)


def test_the_oracle_keeps_what_the_queries_weigh_most(source):
  _, chosen = kept(source, ORACLE, FOLLOWS[0])
  tokens = jnp.asarray(FOLLOWS[0].tokens[0])
  _, _, ((weights, _),) = kvjax.extend(
    CONFIG, source.params, source.dense, tokens, attention_layers=(0,)
  )
  received = np.asarray(weights).sum((1, 2))[:, :12]  # one kv head
  for row in range(2):
    free = np.argsort(-received[row, 1:10], kind='stable')[:3] + 1
    expected = sorted([0, 10, 11, *free])
    assert chosen[row, 0, -6:].tolist() == expected


def test_a_constant_of_each_row_is_of_its_early_tokens(source):
  codec = caches.CentredByRow(kvjax.Affine(8, group=4), whole=1, until=5)
  kind = kvjax.Residual(kvjax.Dense(), first=5, window=2, group=1)
  row = caches.Row('of rows', kind, codec)
  row = row.calibrated(CONFIG, source.params, source.contexts[:1])
  cache, stored = source.compress(row, FOLLOWS[0])
  keys = np.asarray(source.dense.stores[0]['key'])
  (found,) = cache.constants
  np.testing.assert_allclose(found, keys[:, :, 1:5].mean(axis=2), rtol=2e-3)
  assert not np.allclose(found[0], found[1], rtol=0.1)
  sizes = row.sizes(CONFIG, source.contexts, source.room)
  assert stored == sizes['planned_bytes']


def test_keys_before_rotation_are_read_as_the_others(source):
  name = 'residual:first=4,window=2,group=1+centred(affine(8,4),rotated={})'
  found = []
  for rotated in (False, True):
    row = caches.Row.of(name.format(rotated))
    row = row.calibrated(CONFIG, source.params, source.contexts[:1])
    cache, _ = source.compress(row, FOLLOWS[0])
    assert cache.layout.store_of(0).rotated is rotated
    found += cost.predict(CONFIG, source.params, cache, AT_ONCE)
  np.testing.assert_allclose(*found, rtol=0, atol=2e-2)


def test_float32_predicts_as_the_model_without_a_cache(source):
  targets = [[[-1, 3, 5], [2, -1, -1]]]
  part = part_of([[[1, 2, 3], [4, 5, 6]]], targets)
  cache, _ = source.compress(caches.Row.of('plain'), part)
  found = cost.predict(CONFIG, source.params, cache, part)
  ids = np.concatenate([source.contexts, part.tokens[0]], axis=1)
  logits = kvjax.forward(CONFIG, source.params, jnp.asarray(ids))[:, 12:]
  scores = np.asarray(jax.nn.log_softmax(logits), np.float64)
  wanted = [(0, 1, 3), (0, 2, 5), (1, 0, 2)]
  figures = cost.compare(part, found, found)
  losses = [-scores[place] for place in wanted]
  assert figures['nll'] == pytest.approx(np.mean(losses), rel=1e-5)
  hits = [scores[row, at].argmax() == token for row, at, token in wanted]
  assert figures['right'] == np.mean(hits)
  assert figures['kl_mean'] == 0.0
  assert figures['exact_contexts'] == [float(all(hits[:2])), float(hits[2])]


def test_divergence_by_a_second_formula():
  targets = np.array([[[-1, 3, 5], [2, -1, -1]], [[1, -1, -1], [1, 0, -1]]])
  part = part_of(np.zeros_like(targets), targets)
  draw = np.random.default_rng(1)
  full, other = (
    [
      np.log(draw.dirichlet(np.ones(6), (2, 2))).astype(np.float32)
      for _ in '12'
    ]
    for _ in '12'
  )
  found = cost.compare(part, other, full)
  # Of each repetition the first of the two places, and the second if real.
  real = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
  each = {}
  for j, row, at in real:
    p = np.exp(np.float64(full[j][row, at]))
    each[j, row, at] = float(
      (p * (np.float64(full[j][row, at]) - other[j][row, at])).sum()
    )
  rows = [
    np.mean([kl for (_, r, _), kl in each.items() if r == row])
    for row in range(2)
  ]
  assert found['kl_mean'] == pytest.approx(np.mean(list(each.values())), 1e-4)
  assert found['kl_median'] == pytest.approx(
    np.median(list(each.values())), 1e-4
  )
  assert found['kl_contexts'] == pytest.approx(rows, 1e-4)
  assert found['kl_contexts_median'] == pytest.approx(np.median(rows), 1e-4)


def test_a_context_that_the_full_model_fails_is_dropped(monkeypatch):
  right = {0: 1.0, 1: 0.8, 2: 0.9, 3: 1.0, 4: 0.95, 5: 1.0}
  exact = {0: 0.5, 1: 1.0, 2: 0.6, 3: 0.75, 4: 1.0, 5: 1.0}

  def draw(numbers):
    tokens = np.asarray(numbers, np.int32)[:, None]
    return contexts.Reading('drawn', tokens, (part_of(tokens[None]),))

  def compare(part, found, full):
    del found, full
    numbers = part.tokens[0, :, 0].tolist()
    return {
      'right_contexts': [right[n] for n in numbers],
      'exact_contexts': [exact[n] for n in numbers],
    }

  monkeypatch.setattr(
    cost, 'Compressor', lambda *_: types.SimpleNamespace(dense=0)
  )
  monkeypatch.setattr(cost, 'predict', lambda *_: ())
  monkeypatch.setattr(cost, 'compare', compare)
  rule = cost.Answered(contexts=2, right=0.9, exact=0.6, most=6)
  room: object = None
  found = cost.keep_answered(CONFIG, {}, draw, room, rule)
  assert found == {'record': 'contexts', 'tried': 4, 'kept': [2, 3]}
  with pytest.raises(ValueError, match='answers 0 of 2 contexts, and 2 are'):
    few = cost.Answered(contexts=2, right=1.0, exact=1.0, most=2)
    cost.keep_answered(CONFIG, {}, draw, room, few)


def test_a_budget_that_chooses_nothing():
  row = caches.Row.of(KEEPS.format('key_diff'))
  room = caches.Room(capacity=16, following=4)
  for tokens in (6, 11):
    row.check_choice(tokens, room)
  with pytest.raises(ValueError, match='has 10 slots, 4 of them'):
    row.check_choice(10, room)


# --- What is read -----------------------------------------------------------


def text(ids):
  return bytes(ids[ids >= 0].tolist()).decode('latin-1')


def test_quotes_are_of_the_context_and_prose_goes_on():
  size = contexts.ProseSize(2, 60, 7, 2, 6, 5)
  found = contexts.read_prose(ByteTokenizer(), size)
  prose, copy = found.parts
  np.testing.assert_array_equal(prose.tokens[..., 1:], prose.targets[..., :-1])
  assert copy.tokens.shape == (2, 2, 2 + 6 + 5 - 1)
  for row in range(2):
    for quote in copy.tokens[:, row]:
      assert text(quote)[:2] == '\n\n'
      assert text(quote)[2:] in text(found.contexts[row])
  wanted = copy.targets[0, 0]
  assert (wanted[:-5] == -1).all()
  np.testing.assert_array_equal(wanted[-5:-1], copy.tokens[0, 0, -4:])


def test_questions_ask_for_digits_that_the_context_hides():
  size = contexts.RetrievalSize(2, 400, 3)
  found = contexts.draw_retrieval(ByteTokenizer(), size, 0, (5, 6))
  (part,) = found.parts
  for question in range(3):
    for row in range(2):
      fed = text(part.tokens[question, row])
      digits = text(part.targets[question, row])
      key = fed.split('number for ')[1].split('?')[0]
      assert len(digits) == 5 and fed.endswith(digits[:-1])
      assert f'number for {key} is {digits}.' in text(found.contexts[row])
  alone = contexts.draw_retrieval(ByteTokenizer(), size, 0, (6,))
  np.testing.assert_array_equal(alone.contexts[0], found.contexts[1])
  inside = contexts.with_question_inside(found)
  for row in range(2):
    context = text(inside.contexts[row])
    whole = context + text(inside.parts[0].tokens[0, row])
    digits = text(inside.parts[0].targets[0, row])
    assert whole.startswith(text(found.contexts[row]))
    assert whole.endswith(digits[:-1]) and not context.endswith(digits[0])


# --- Report -----------------------------------------------------------------


def record(cache, size, distance, part='prose'):
  return {
    'record': 'cost',
    **caches.Row.of(cache).names,
    'reading': 'prose',
    'part': part,
    'bytes_per_token': size,
    'kl_contexts_median': distance,
    'kl_mean': distance,
    'cache_bytes': 1,
    'planned_bytes': 1,
  }


COSTS = [
  record('plain', 100.0, 0.0),
  record('int8', 30.0, 1e-4),
  record('affine', 40.0, 1e-3),  # int8 has fewer bytes and loses less
  record('bounded:budget=6,score=tova,protect=(1, 2)', 20.0, 0.2),
  record(ORACLE, 20.0, 0.1),
]
EXPECTED = {'full': 1e-6, 'int8': 1e-3, 'oracle': True, 'recall': 0.9}


def test_the_front_is_of_caches_that_nobody_beats():
  best = findings.front(COSTS)
  assert [caches.Row.of(name).label for name in best] == [
    'tova 6',
    'int8',
    'float32',
  ]


@pytest.mark.parametrize(
  ('index', 'distance'), [(0, 1e-3), (1, 0.01), (4, 0.3)]
)
def test_each_gate_fails(index, distance):
  assert all(holds for _, holds in findings.claims(COSTS, EXPECTED).rows)
  broken = list(COSTS)
  broken[index] = COSTS[index] | {
    'kl_contexts_median': distance,
    'kl_mean': distance,
  }
  rows = findings.claims(broken, EXPECTED).rows
  assert [holds for _, holds in rows].count(False) == 1


def test_a_blind_score_above_its_ceiling_fails_the_run():
  full = {
    'record': 'recall',
    **caches.Row.of('plain').names,
    'model': 'gqa',
    'right': 0.99,
    'limit': 1.0,
    'lost_queries': 0,
    'lost_right': None,
    'lost_limit': 0.1,
  }
  blind = full | {
    **caches.Row.of(KEEPS.format('tova')).names,
    'right': 0.4,
    'limit': 0.5,
    'lost_queries': 9,
    'lost_right': 0.0,
  }
  oracle = blind | caches.Row.of(ORACLE).names | {'right': 0.9}
  rows = findings.claims([full, blind, oracle], EXPECTED).rows
  assert all(holds for _, holds in rows)
  for fault in ({'right': 0.6}, {'lost_right': 0.2}):
    rows = findings.claims([full, blind | fault, oracle], EXPECTED).rows
    failed = [claim for claim, holds in rows if not holds]
    assert len(failed) == 1 and 'tova 6' in failed[0]


def test_blocks_as_markdown():
  table = Table('Sizes', ('name', 'bytes'), [('a|b', 1234)], note='All.')
  assert markdown('Report', [Heading('Part'), table]) == (
    '# Report\n\n## Part\n\n**Sizes**\n\n'
    '| name | bytes |\n| --- | ---: |\n| a\\|b | 1,234 |\n\nAll.\n'
  )


# --- Commands ---------------------------------------------------------------


def run(commands, tmp_path, *flags):
  return commands(
    'frontier',
    '--config=configs/frontier.py:tiny',
    f'--checkpoint={tmp_path / "model"}',
    f'--workdir={tmp_path}',
    *flags,
  )


def read(tmp_path, kind):
  lines = (tmp_path / 'frontier.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [x for x in found if x['record'] == kind]


def test_a_tiny_run_and_its_second_part(tmp_path, commands):
  config = kvjax.ModelConfig(256, CONFIG.width, CONFIG.layers)
  params = kvjax.init_params(config, jax.random.key(0))
  kvjax.save_checkpoint(tmp_path / 'model', config, params)
  ended = run(commands, tmp_path)
  assert ended.code == 0, ended.err
  costs = read(tmp_path, 'cost')
  assert [(r['part'], r['label']) for r in costs] == [
    (part, cache)
    for parts in (('prose', 'copy'), ('retrieval',))
    for cache in ('float32', 'int8', 'key_diff 48')
    for part in parts
  ]
  assert costs[0]['kl_mean'] == 0.0 < costs[2]['kl_mean']
  assert len(read(tmp_path, 'recall')) == 2
  for name in ('frontier.html', 'frontier.md', 'main.png'):
    assert (tmp_path / name).stat().st_size > 1_000
  ended = run(commands, tmp_path)  # all is known
  assert ended.code == 0, ended.err
  assert len(read(tmp_path, 'run')) == 2
  assert read(tmp_path, 'cost') == costs
  assert len(read(tmp_path, 'training')) == 1


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--table=none', "table='none' is unknown; known: centring, codecs, main"),
    ("--config.tables.main=('intt8',)", "'intt8' is no name of one kind"),
    ('--config.prose.copies=60', 'prose.copies=60 quotes of 4 + 4 tokens'),
  ],
)
def test_refusals(flag, said, tmp_path, commands):
  ended = run(commands, tmp_path, flag)
  assert ended.code == 2 and ended.err.count('\n') == 1
  assert said in ended.err
