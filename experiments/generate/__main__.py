"""Text in, text out, from a published checkpoint: streamed as it comes.

  python -m experiments.generate --checkpoint=DIR --prompt='Once upon a time'
  python -m experiments.generate --checkpoint=DIR --prompts=FILE --cache=int8
  python -m experiments.generate --checkpoint=smollm2-135m --chat
Text goes to stdout, figures to stderr; Ctrl-C ends the text and keeps it. After
--save_prompt_cache=FILE --capacity=N, --prompt_cache=FILE goes on from there.
--chat without a prompt is a conversation: a line a turn, until an empty one.
"""

import functools
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

import kvjax
from experiments import launch
from experiments.generate import answer, conversation
from experiments.generate.speed import describe
from experiments.generate.streaming import Streaming
from experiments.measuring.clock import reading
from experiments.measuring.model import array_bytes, step_bytes
from experiments.reporting import records
from kvjax.decoding.parse import DEFAULT, parse_cache
from kvjax.text import prompts, tokenizer

# Not the global flags: modules of other experiments define a --seed as well.
FLAGS = flags.FlagValues()
_text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_int = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_real = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_CHECKPOINT = _text('checkpoint', '', 'Path, smollm2-135m, or Hub id x/y.')
_PROMPT = _text('prompt', '', 'What to continue.')
_PROMPTS = _text('prompts', '', 'File: a prompt a line.')
_CHAT = _bool('chat', None, 'Through the template; alone: a conversation.')
_SYSTEM = _text('system', '', 'Instruction of a chat.')
_TOKENS = _int('tokens', 128, 'Most to generate.')
_STOP = _bool('stop', True, "At the checkpoint's end of text.")
_CACHE = _text('cache', DEFAULT, 'kind:field=x,...+codec, or module:Name(...).')
_CAPACITY = _int('capacity', None, 'Of the cache, in tokens; default: enough.')
_LOAD = _text('prompt_cache', '', 'File to go on from.')
_SAVE = _text('save_prompt_cache', '', 'File to write after the prompts.')
_DTYPE = _text('dtype', None, 'Of params; default: as stored.')
_WEIGHTS = _text('weights', None, 'int8 by channels, or int4 in blocks.')
_KERNEL = _text('kernel', None, 'That must attend; default: the fastest.')
_BLOCK = _int('block', 8, 'Tokens of one device program.')
_SEED = _int('seed', 0, 'Of sampling.')
_OUT = _text('out', '', 'JSON lines of texts and figures.')
_SAMPLING = {
  'temperature': _real('temperature', 0.0, '0: greedy.'),
  'top_k': _int('top_k', None, 'Likeliest tokens.'),
  'top_p': _real('top_p', None, 'Nucleus, up to 1.'),
  'min_p': _real('min_p', None, 'Of the likeliest, up to 1.'),
}
_PENALTY = _real('repetition_penalty', None, 'Of tokens seen, above 1.')


def check() -> tuple[list[str], tokenizer.Tokenizer, answer.Request]:
  """Returns prompts, tokenizer and request; no tensor is read yet.

  Raises:
    ValueError: the flags make no sense.
  """
  if not _CHECKPOINT.value:
    raise ValueError('No model is named: give --checkpoint=DIR.')
  if bool(_PROMPT.value) == bool(_PROMPTS.value) and not _is_conversation():
    raise ValueError(
      'Give one of --prompt=TEXT and --prompts=FILE, or --chat alone for a '
      'conversation.'
    )
  config = kvjax.load_config(path := _CHECKPOINT.value)
  if _is_conversation():
    conversation.check(config, _SAVE.value)
  words = tokenizer.load_tokenizer(path)
  file = _PROMPTS.value
  texts = prompts.read_prompts(file) if file else [_PROMPT.value]
  rows = prompts.encode_prompts(
    words, texts, chat=_CHAT.value, system=_SYSTEM.value
  )
  batch, source = answer.batches(config, path, rows)
  sampling = {name: flag.value for name, flag in _SAMPLING.items()}
  if _PENALTY.value is not None:
    sampling['adjust'] = answer.penalty(_PENALTY.value, batch)
  kind, codec = parse_cache(_CACHE.value)
  capacity = _CAPACITY.value
  if capacity is None:
    capacity = int(batch.lengths.max()) + _TOKENS.value - 1
    if _is_conversation():
      capacity = max(capacity, conversation.default_capacity(config))
  request = answer.Request(
    prompts=batch,
    source=source,
    cache={'capacity': capacity, 'kinds': kind, 'codec': codec},
    tokens=_TOKENS.value,
    # A conversation writes each answer as far as there is room.
    least=1 if _is_conversation() else _TOKENS.value,
    stop_tokens=tokenizer.stop_tokens(path) if _STOP.value else (),
    block=_BLOCK.value,
    seed=_SEED.value,
    kernel=_KERNEL.value,
    sampling=sampling,
  )
  is_described = _CACHE.value != DEFAULT or _CAPACITY.value is not None
  answer.check_cache(request, config, _LOAD.value, is_described)
  return texts, words, request


def main(argv: list[str]) -> None:
  del argv
  name, dtype = _CHECKPOINT.value, _DTYPE.value
  with launch.door():
    texts, words, request = check()
    model = kvjax.load_checkpoint(name, dtype, weights=_WEIGHTS.value)
    cache = answer.open_cache(request, model, _LOAD.value)
  run = {'command': launch.command(), 'environment': records.environment()}
  _write([{'record': 'run', **run}])
  if _is_conversation():
    _write(conversation.hold(request, model, words, cache, _SYSTEM.value))
    return
  text = Streaming([words.stream() for _ in texts], request.stop_tokens)
  cache, watch = answer.write(request, model, cache, text, _SAVE.value)
  speed = watch.record(
    step_bytes=step_bytes(*model, cache),
    bandwidth=reading(64, 3),
    cache_bytes=array_bytes(cache),
  )
  print(describe(speed), file=sys.stderr)
  _write([*text.records(texts), speed])
  if text.interrupted:
    raise SystemExit(130)


def _is_conversation() -> bool:
  return bool(_CHAT.value) and not (_PROMPT.value or _PROMPTS.value)


def _write(found: Iterable[Mapping[str, Any]]) -> None:
  """Adds records to the file of --out, where one is named, as they come."""
  for record in found:
    if _OUT.value:
      records.append(pathlib.Path(_OUT.value), record)


if __name__ == '__main__':
  launch.run(main, values=FLAGS)
