r"""What does a smaller cache cost a published model, in bits per byte?

  python -m experiments.perplexity --checkpoint=DIR --text=FILE \
      --cache=default --cache=int8 --cache=ring:window=256

The model reads the text, not what it writes, token by token through each cache.
The report gives the uncached figure and the bytes that a token takes as well;
with --weights all figures but the first are of the model in fewer bits.
Would be refuted by: other figures of the default cache, which forgets nothing
that the model sees, than of the model without a cache.
"""

import functools
import pathlib
from typing import Any

from absl import flags

import kvjax
from experiments import launch
from experiments.perplexity import held_out
from experiments.reporting.blocks import Table
from experiments.reporting.writer import start
from kvjax.decoding.allocate import cache_spec, check_sizes
from kvjax.decoding.parse import DEFAULT, parse_cache
from kvjax.text.tokenizer import load_tokenizer

FLAGS = flags.FlagValues()  # Not the global ones: generate defines some too.
_text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_int = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_CHECKPOINT = _text('checkpoint', '', 'Path, smollm2-135m, or Hub id x/y.')
_TEXT = _text('text', '', 'File of text that the model has not learned.')
_CACHES = flags.DEFINE_multi_string(
  'cache',
  [DEFAULT, 'int8'],
  'kind:field=value,...+codec, or module:Name(...). Repeat it for more.',
  flag_values=FLAGS,
)
_ROWS = _int('rows', 4, 'Windows, spread over the text.')
_LENGTH = _int('length', 512, 'Tokens of a window.')
_DTYPE = _text('dtype', None, 'Of params; default: as stored.')
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  None,
  ['int8', 'int4'],
  'int8, a scale a channel; or int4, in blocks.',
  flag_values=FLAGS,
)
_KERNEL = _text('kernel', None, 'That must attend; default: the fastest.')
_WORKDIR = _text('workdir', 'out/perplexity', 'Where files go.')
_COLUMNS = (
  'cache',
  'bits_per_byte',
  'perplexity',
  'more_bits',
  'bytes_per_token',
  'cache_bytes',
)


def check() -> tuple[held_out.HeldOut, dict[str, dict[str, Any]]]:
  """Returns the text and the caches by name, before any tensor is read.

  Raises:
    ValueError: the flags make no sense.
  """
  for flag in (_CHECKPOINT, _TEXT):
    if not flag.value:
      raise ValueError(f'Nothing is named: give --{flag.name}=PATH.')
  check_sizes(rows=_ROWS.value, length=_LENGTH.value)
  config = kvjax.load_config(_CHECKPOINT.value)
  if config.encoder is not None:
    raise ValueError(f'{_CHECKPOINT.value} reads a source besides the text.')
  caches = {}
  for name in _CACHES.value:
    kind, codec = parse_cache(name)
    caches[name] = {'kinds': kind, 'codec': codec}
    cache_spec(config, _ROWS.value, _LENGTH.value, **caches[name])  # raises
  tokenizer = load_tokenizer(_CHECKPOINT.value)
  text = held_out.read_text(pathlib.Path(_TEXT.value))
  windows = held_out.hold_out(
    config, tokenizer, text, rows=_ROWS.value, length=_LENGTH.value
  )
  return windows, caches


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    text, caches = check()
    config, params = kvjax.load_checkpoint(_CHECKPOINT.value, _DTYPE.value)
  rows, length = text.tokens.shape
  run = {'flags': FLAGS.flag_values_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'perplexity', 'What a cache costs', run)
  figures = held_out.measure(
    config,
    params,
    text,
    caches,
    weights=_WEIGHTS.value,
    kernel=_KERNEL.value,
  )
  records = [writer.record(record) for record in figures]
  table = Table.of(
    f'{rows} windows of {length} tokens of {_TEXT.value}',
    {name.replace('_', ' '): name for name in _COLUMNS},
    records,
  )
  writer.show(table).save()
  uncached, *cached = records[-len(caches) - 1 :]
  expected = uncached['bits_per_byte']
  for record in cached:
    exact = record['cache'] == DEFAULT
    reason = held_out.refuted(record, expected, config.dtype, exact=exact)
    if reason:
      raise SystemExit(reason)


if __name__ == '__main__':
  launch.run(main, values=FLAGS)
