"""The tables of the experiment: which rows read what, and what is known."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kvjax
from experiments.frontier import cost, recall
from experiments.frontier.caches import Params, Room, Row, check_rows
from experiments.frontier.contexts import (
  ProseSize,
  Reading,
  RetrievalSize,
  calibration_tokens,
  draw_retrieval,
  read_prose,
  with_question_inside,
)
from kvjax.text.tokenizer import Tokenizer, load_tokenizer

Record = dict[str, Any]
PROSE, RETRIEVAL, INSIDE = 'prose', 'retrieval', 'question inside'
# What a table reads, if not prose and numbers.
READS = {
  'unprotected': (PROSE,),
  'centring': (PROSE,),
  'question_inside': (INSIDE,),
}
PARTS = {PROSE: ('prose', 'copy')}  # of a reading, if not one of its name
RECALLS = {'recall': 'gqa', 'recall_latent': 'mla'}
SECONDS_PER_TOKEN, SECONDS_PER_PROGRAM = 1 / 500, 6.0  # see estimate_minutes
SPARE = 8  # tokens by which a later question may be longer than the first ones


@dataclasses.dataclass(frozen=True)
class Study:
  """The config, checked and turned into what the library takes.

  Attributes:
    checkpoint: that reads text.
    seed: of contexts and of the small models.
    prose: sizes of prose.
    retrievals: sizes of contexts that hide numbers.
    answered: shares of digits and of questions that the full cache must get
      right of a context.
    tried: contexts that are tried, about.
    pairs: the task of recall.
    shape: of the models that are trained on it.
    tables: rows by the name of their table.
  """

  checkpoint: str
  seed: int
  prose: ProseSize
  retrievals: tuple[RetrievalSize, ...]
  answered: tuple[float, float]
  tried: int
  pairs: recall.Pairs
  shape: Mapping[str, int]
  tables: Mapping[str, Sequence[Row]]

  def check(self, names: Sequence[str]) -> None:
    """Raises ValueError where tables are unknown, or a cache cannot be."""
    for name in names:
      if name not in self.tables:
        known = ', '.join(self.tables)
        raise ValueError(f'table={name!r} is unknown; known: {known}.')
      if name in RECALLS:
        model, tokens = self.small_model(name), 2 * self.pairs.growth[-1]
      else:
        model, tokens = kvjax.load_config(self.checkpoint), self.prose.context
        if model.encoder is not None:
          raise ValueError(f'{self.checkpoint} reads more than text.')
      check_rows(model, self.tables[name], tokens)

  def small_model(self, table: str) -> kvjax.ModelConfig:
    """Returns the model that is trained for a table of recall."""
    return recall.make_model(RECALLS[table], self.shape, self.pairs)

  def digest(self, table: str) -> str:
    """Returns digits that differ where figures of a row would."""
    parts: list[Any] = [self.seed]
    if table in RECALLS:
      parts += [dataclasses.asdict(self.pairs), dict(self.shape)]
    else:
      parts += [self.checkpoint, self.answered]
      parts += [dataclasses.asdict(x) for x in (self.prose, *self.retrievals)]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    return load_tokenizer(self.checkpoint)

  @functools.cached_property
  def model(self) -> tuple[kvjax.ModelConfig, Params]:
    return kvjax.load_checkpoint(self.checkpoint)


def run(
  study: Study, table: str, earlier: Sequence[Record]
) -> Iterator[Record]:
  """Yields the records that a table still lacks.

  Args:
    study: what is measured.
    table: its name.
    earlier: records that an interrupted run has left.
  """
  label = {'settings': study.digest(table)}
  earlier = [r for r in earlier if r.get('settings') == label['settings']]
  runner = _recall if table in RECALLS else _text
  for record in runner(study, table, earlier):
    yield record | label


def estimate_minutes(study: Study, tables: Sequence[str]) -> float:
  """Returns about how long tables take, compiling included.

  As if nothing was known yet, for SmolLM2-135M on two cores that do nothing
  else.
  """
  seconds = 0.0
  for table in tables:
    if table in RECALLS:
      seconds += 60 + 2 * len(study.tables[table])
      continue
    fed = (
      2
      * study.prose.windows
      * (study.prose.following + cost.PIECE * study.prose.copies)
    )
    read = study.prose.windows * study.prose.context
    for size in study.retrievals:
      fed += size.contexts * size.numbers * cost.PIECE
      read += size.contexts * size.context
    for row in study.tables[table]:
      seconds += fed * SECONDS_PER_TOKEN + 2 * SECONDS_PER_PROGRAM
      if row.reads_queries:
        seconds += read * SECONDS_PER_TOKEN + 3 * SECONDS_PER_PROGRAM
  return seconds / 60


def parts_of(table: str) -> tuple[str, ...]:
  """Returns the names of the parts that a table of text is about."""
  reads = READS.get(table, (PROSE, RETRIEVAL))
  return tuple(part for name in reads for part in PARTS.get(name, (name,)))


def _recall(study, table, earlier):
  variant = RECALLS[table]
  known = {
    r['cache']
    for r in earlier
    if r['record'] == 'recall' and r['model'] == variant
  }
  rows = [row for row in study.tables[table] if row.name not in known]
  if not rows:
    return
  config = study.small_model(table)
  params, record = recall.train(study.pairs, config, study.seed, variant)
  yield record
  yield from recall.measure(
    study.pairs, config, params, rows, seed=study.seed, label=variant
  )


def _text(study, table, earlier):
  reads = READS.get(table, (PROSE, RETRIEVAL))
  prose = read_prose(study.tokenizer, study.prose)
  room = _room(study, prose)
  if PROSE in reads:
    yield from _measure(study, table, earlier, prose, room)
  if reads == (PROSE,):
    return
  for size in study.retrievals:
    draw = functools.partial(draw_retrieval, study.tokenizer, size, study.seed)
    record = _find_contexts(size, earlier)
    if record is None:
      right, exact = study.answered
      rule = cost.Answered(size.contexts, right, exact, study.tried)
      config, params = study.model
      record = cost.keep_answered(config, params, draw, room, rule)
      yield record | {'reading': size.name}
    reading = draw(record['kept'])
    if INSIDE in reads:
      reading = with_question_inside(reading)
      yield from _measure(study, table, earlier, reading, _room_of(reading))
    else:
      yield from _measure(study, table, earlier, reading, room)


def _find_contexts(
  size: RetrievalSize, earlier: Sequence[Record]
) -> Record | None:
  for record in earlier:
    if record['record'] == 'contexts' and record['reading'] == size.name:
      return record
  return None


def _measure(study, table, earlier, reading, room):
  known = {
    (r['cache'], r['part'])
    for r in earlier
    if r.get('reading') == reading.name and r['record'] == 'cost'
  }
  parts = [part.name for part in reading.parts]
  rows = [
    row
    for row in study.tables[table]
    if not {(row.name, part) for part in parts} <= known
  ]
  for row in rows:
    row.check_choice(reading.contexts.shape[1], room)
  if rows:
    config, params = study.model
    tokens = calibration_tokens(study.tokenizer, study.prose)
    rows = [row.calibrated(config, params, tokens) for row in rows]
    yield from cost.measure(config, params, reading, rows, room)


def _room(study: Study, prose: Reading) -> Room:
  """Returns the room of all caches of a table, so that they share programs."""
  widths, lengths = [prose.width], [study.prose.context]
  for size in study.retrievals:
    numbers = range(size.contexts)
    reading = draw_retrieval(study.tokenizer, size, study.seed, numbers)
    widths.append(reading.width + SPARE)
    lengths.append(size.context)
  following = -(-max(widths) // cost.PIECE) * cost.PIECE
  return Room(max(lengths) + following, following)


def _room_of(reading: Reading) -> Room:
  following = -(-reading.width // cost.PIECE) * cost.PIECE
  return Room(reading.contexts.shape[1] + following, following)
