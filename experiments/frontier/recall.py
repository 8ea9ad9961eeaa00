"""Recall that text cannot fake, and the most that a cache can recall.

Multi-query associative recall (Zoology, arXiv 2312.04927): random pairs of a
key and a value, then keys whose values are the answers. The pairs cannot be
guessed from each other, so a pair of which no slot survives, in any layer and
head, can only be guessed. That gives each cache a ceiling, counted from its own
books.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kvjax
from experiments.frontier.caches import Compressor, Params, Room, Row
from experiments.frontier.contexts import Part
from experiments.reporting.writer import follow
from experiments.training.step import Recipe
from experiments.training.variants import Shape, model
from kvjax.decoding.allocate import check_sizes

Record = dict[str, Any]
SIGMAS = 3.0


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Sizes of the task.

  Attributes:
    symbols: different keys, and as many values.
    growth: pairs of an example while the model is trained, one stage each; the
      last is measured.
    queries: keys of an example that are queried, when it is measured.
    examples: that are measured.
    stage: updates of a stage.
    batch: examples of an update.
    learning_rate: of all stages.
  """

  symbols: int
  growth: tuple[int, ...]
  queries: int
  examples: int
  stage: int
  batch: int
  learning_rate: float

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    del sizes['growth'], sizes['learning_rate']
    check_sizes(**sizes)
    if not self.growth or max(self.growth) > self.symbols:
      raise ValueError(
        f'growth={self.growth} must be numbers of pairs, at most '
        f'symbols={self.symbols}.'
      )
    if self.queries > self.growth[-1]:
      raise ValueError(
        f'queries={self.queries} must be at most the {self.growth[-1]} pairs.'
      )

  @property
  def chance(self) -> float:
    """Share that a guess gets right."""
    return 1 / self.symbols


def draw(
  pairs: Pairs,
  rng: np.random.Generator,
  examples: int,
  count: int,
  queries: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns contexts `[n, 2 count]`, queries `[n, 2 queries]`, and which pairs.

  A query is a key and the value that is to be predicted behind it.
  """
  shape = (examples, pairs.symbols)
  keys = rng.permuted(np.broadcast_to(np.arange(shape[1]), shape), axis=1)
  keys = keys[:, :count]
  values = rng.integers(pairs.symbols, 2 * pairs.symbols, (examples, count))
  order = np.broadcast_to(np.arange(count), (examples, count))
  chosen = rng.permuted(order, axis=1)[:, :queries]

  def interleave(a, b):
    return np.stack([a, b], axis=2).reshape(examples, -1).astype(np.int32)

  context = interleave(keys, values)
  questions = interleave(
    *(np.take_along_axis(x, chosen, 1) for x in (keys, values))
  )
  return context, questions, chosen


@functools.partial(
  jax.jit, static_argnames=('config', 'recipe', 'start'), donate_argnums=(3, 4)
)
def _step(config, recipe, start, params, moments, tokens):
  def loss(params):
    logits = kvjax.forward(config, params, tokens)[:, start:-1:2]
    targets = tokens[:, start + 1 :: 2]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return each.mean(), (logits.argmax(-1) == targets).mean()

  (_, right), slope = jax.value_and_grad(loss, has_aux=True)(params)
  updates, moments = recipe.optimizer().update(slope, moments, params)
  return right, optax.apply_updates(params, updates), moments


def train(
  pairs: Pairs, config: kvjax.ModelConfig, seed: int, label: str
) -> tuple[Params, Record]:
  """Returns a model that recalls, and how its training went.

  A stage ends early once a batch is recalled whole.
  """
  params = kvjax.init_params(config, jax.random.key(seed))
  rng = np.random.default_rng(seed)
  begin, right, taken = time.perf_counter(), 0.0, []
  for count in follow(f'train {label}', pairs.growth, len(pairs.growth)):
    recipe = Recipe(
      pairs.stage, pairs.batch, 4 * count, learning_rate=pairs.learning_rate
    )
    moments = recipe.optimizer().init(params)
    steps = 0
    for steps in range(1, pairs.stage + 1):
      context, questions, _ = draw(pairs, rng, pairs.batch, count, count)
      tokens = jnp.asarray(np.concatenate([context, questions], axis=1))
      right, params, moments = _step(
        config, recipe, 2 * count, params, moments, tokens
      )
      if steps % 10 == 0 and float(right) > 0.999:
        break
    taken.append(steps)
  seconds = time.perf_counter() - begin
  record = {'record': 'training', 'model': label, 'steps': taken}
  return params, record | {'right': float(right), 'seconds': seconds}


def measure(
  pairs: Pairs,
  config: kvjax.ModelConfig,
  params: Params,
  rows: Sequence[Row],
  *,
  seed: int,
  label: str,
) -> Iterator[Record]:
  """Yields a record a row: what is recalled, and the most that could be."""
  rng = np.random.default_rng((seed, 1))
  count = pairs.growth[-1]
  contexts, questions, chosen = draw(
    pairs, rng, pairs.examples, count, pairs.queries
  )
  part = Part('recall', questions[None], _targets(questions)[None])
  following = questions.shape[1]
  room = Room(contexts.shape[1] + following, following)
  source = Compressor(config, params, contexts, room)
  for row in follow(label, rows, len(rows)):
    start = time.perf_counter()
    cache, stored = source.compress(row, part)
    has = pairs_touched(surviving(cache, contexts.shape[1]))
    logits, _ = kvjax.extend(config, params, cache, jnp.asarray(questions))
    answers = np.asarray(logits[:, ::2].argmax(axis=-1))
    right = answers == questions[:, 1::2]
    yield {
      'record': 'recall',
      **row.names,
      'model': label,
      **row.sizes(config, contexts, room),
      'cache_bytes': stored,
      **judge(right, has, chosen, pairs.chance),
      'seconds': time.perf_counter() - start,
    }


def _targets(questions: np.ndarray) -> np.ndarray:
  targets = np.full_like(questions, -1)
  targets[:, ::2] = questions[:, 1::2]
  return targets


def surviving(cache: kvjax.Cache, tokens: int) -> np.ndarray:
  """Returns bool `[R, tokens]`: positions with a slot in any layer or head."""
  found = np.zeros((cache.batch_size, tokens), bool)
  for index in sorted(set(cache.layout.books) - {-1}):
    book: Any = cache.books[index]
    positions = np.asarray(book.positions).reshape(cache.batch_size, -1)
    rows, slots = np.nonzero((positions >= 0) & (positions < tokens))
    found[rows, positions[rows, slots]] = True
  return found


def pairs_touched(survives: np.ndarray) -> np.ndarray:
  """Returns bool `[R, pairs]`: pairs whose key or value has a slot left."""
  return survives[:, ::2] | survives[:, 1::2]


def judge(
  right: np.ndarray, touched: np.ndarray, chosen: np.ndarray, chance: float
) -> Record:
  """Returns what was recalled, and the most that could be.

  Args:
    right: bool `[R, queries]`.
    touched: bool `[R, pairs]`, pairs of which something is left.
    chosen: int `[R, queries]`, the pair that each query names. They are drawn
      after the choice of tokens, so a share of all pairs is expected of them.
    chance: of a guess.
  """
  share = float(touched.mean())
  ceiling = share + (1 - share) * chance
  sigma = math.sqrt(ceiling * (1 - ceiling) / right.size)
  lost = ~np.take_along_axis(touched, chosen, axis=1)
  guessed = float(right[lost].mean()) if lost.any() else None
  count = int(lost.sum())
  return {
    'right': float(right.mean()),
    'ceiling': ceiling,
    'limit': ceiling + SIGMAS * sigma,
    'touched': share,
    'lost_queries': count,
    'lost_right': guessed,
    'lost_limit': chance
    + SIGMAS * math.sqrt(chance * (1 - chance) / max(count, 1)),
  }


def make_model(
  variant: str, shape: Mapping[str, int], pairs: Pairs
) -> kvjax.ModelConfig:
  """Returns the model of a variant, for the symbols of the task."""
  return model(variant, Shape(**shape, vocab_size=2 * pairs.symbols))
