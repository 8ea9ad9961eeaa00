"""What does a smaller cache cost a published model, in bits per byte?

  python -m experiments.perplexity --checkpoint=DIR --text=FILE \\
      --cache=default --cache=int8 --cache=ring:window=256

Teacher-forced through each cache, token by token, beside the uncached figure
and the bytes that a token takes; with --weights=int8 all but the first figure
are of the model in eight bits. Would be refuted by: the default cache, which
forgets nothing that the model sees, parting from the uncached figure.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags

import kvjax
from experiments import launch
from experiments.measuring.traffic import held_bytes
from experiments.perplexity import held_out
from experiments.reporting.blocks import Table
from experiments.reporting.writer import progress, start
from kvjax.decoding.cache import cache_spec, check_sizes
from kvjax.decoding.parse import DEFAULT, parse_cache
from kvjax.memory.planning import plan
from kvjax.models.config import ModelConfig
from kvjax.text.tokenizer import load_tokenizer

Record = dict[str, Any]

FLAGS = flags.FlagValues()
_text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_int = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_CHECKPOINT = _text('checkpoint', '', 'Directory of a model.')
_TEXT = _text('text', '', 'File of text that the model has not learned.')
_CACHES = flags.DEFINE_multi_string(
  'cache', [DEFAULT, 'int8'], 'Any number.', flag_values=FLAGS
)
_ROWS = _int('rows', 4, 'Windows, spread over the text.')
_LENGTH = _int('length', 512, 'Tokens of a window.')
_DTYPE = _text('dtype', None, 'Of params; default: as stored.')
_WEIGHTS = flags.DEFINE_enum(
  'weights', None, ['int8'], 'int8: codes, a scale a line.', flag_values=FLAGS
)
_KERNEL = _text('kernel', None, 'That must attend; default: the fastest.')
_WORKDIR = _text('workdir', 'out/perplexity', 'Where files go.')


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the command line asks for, checked before any tensor is read."""

  text: held_out.HeldOut
  caches: dict[str, dict[str, Any]]


def check() -> Setup:
  """Returns the setup; raises ValueError for what makes no sense."""
  for flag in (_CHECKPOINT, _TEXT):
    if not flag.value:
      raise ValueError(f'Nothing is named: give --{flag.name}=PATH.')
  check_sizes(rows=_ROWS.value, length=_LENGTH.value)
  config = kvjax.load_config(_CHECKPOINT.value)
  if config.encoder is not None:
    raise ValueError(f'{_CHECKPOINT.value} reads a source beside the text.')
  caches = {}
  for name in _CACHES.value:
    kind, codec = parse_cache(name)
    options = {'kinds': kind, 'codec': codec}
    cache_spec(config, _ROWS.value, _LENGTH.value, **options)  # raises
    caches[name] = options
  words = load_tokenizer(_CHECKPOINT.value)
  text = held_out.read_text(pathlib.Path(_TEXT.value))
  windows = held_out.hold_out(
    config, words, text, rows=_ROWS.value, length=_LENGTH.value
  )
  return Setup(windows, caches)


def uncached(setup: Setup, config: ModelConfig, params: Any) -> Record:
  """Returns the figures of the model without a cache."""
  tokens = setup.text.tokens
  with progress('uncached', len(tokens)) as advance:
    losses = held_out.uncached_losses(config, params, tokens, advance)
  return setup.text.scores(losses)


def measure(setup: Setup, config: ModelConfig, params: Any) -> Iterator[Record]:
  """Yields the uncached figure (of floats, then of codes), one a cache."""
  tokens = setup.text.tokens
  rows, length = tokens.shape
  want = uncached(setup, config, params)
  yield {'record': 'perplexity', 'cache': 'uncached', **want}
  if _WEIGHTS.value:
    params = kvjax.quantize(params)
    found = uncached(setup, config, params)
    more = found['bits_per_byte'] - want['bits_per_byte']
    name = 'uncached, int8 weights'
    yield {'record': 'perplexity', 'cache': name, **found, 'more_bits': more}
  for name, options in setup.caches.items():
    cache = kvjax.init_cache(config, rows, length, **options)
    with progress(name, length - 1) as advance:
      losses, cache = held_out.cached_losses(
        config, params, cache, tokens, kernel=_KERNEL.value, progress=advance
      )
    promised = plan(
        config, batch_size=rows, capacity=length,
        kinds=options['kinds'], codec=options['codec'],
    )  # fmt: skip
    found = setup.text.scores(losses)
    yield {
      'record': 'perplexity',
      'cache': name,
      **found,
      'more_bits': found['bits_per_byte'] - want['bits_per_byte'],
      'bytes_per_token': promised.bytes_per_token,
      'cache_bytes': held_bytes(cache),
      'planned_bytes': promised.cache_bytes,
    }


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    setup = check()
    model = kvjax.load_checkpoint(_CHECKPOINT.value, _DTYPE.value)
  rows, length = setup.text.tokens.shape
  run = {'flags': FLAGS.flag_values_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'perplexity', 'What a cache costs', run)
  records = [writer.record(r) for r in measure(setup, *model)]
  columns = (
      'cache', 'bits_per_byte', 'perplexity', 'more_bits', 'bytes_per_token',
      'cache_bytes',
  )  # fmt: skip
  title = f'{rows} windows of {length} tokens of {_TEXT.value}'
  cells = [[record.get(c) for c in columns] for record in records]
  heads = [c.replace('_', ' ') for c in columns]
  print(f'Report: {writer.show(Table(title, heads, cells)).save()}')
  plain = records[1 if _WEIGHTS.value else 0]['bits_per_byte']
  for record in records[2 if _WEIGHTS.value else 1 :]:
    exact = record['cache'] == DEFAULT
    if reason := held_out.refuted(record, plain, model[0].dtype, exact=exact):
      raise SystemExit(reason)


if __name__ == '__main__':
  launch.run_flags(main, FLAGS)
