"""Text in, text out, from a published checkpoint: streamed as it comes.

  python -m experiments.generate --checkpoint=DIR --prompt='Once upon a time'
  python -m experiments.generate --checkpoint=DIR --prompts=FILE --cache=int8
Text goes to stdout, figures to stderr; Ctrl-C ends the text and keeps it. After
--save_prompt_cache=FILE --capacity=N, --prompt_cache=FILE goes on from there.
"""

import functools
import pathlib
import sys

import numpy as np
from absl import flags

import kvjax
from experiments import launch
from experiments.generate import answer
from experiments.generate.speed import describe
from experiments.generate.streaming import Streaming
from experiments.measuring.clock import reading
from experiments.measuring.model import array_bytes, step_bytes
from experiments.reporting import records
from kvjax.decoding.allocate import cache_spec
from kvjax.decoding.parse import DEFAULT, parse_cache
from kvjax.text import prompts, tokenizer

# Not the global flags: modules of other experiments define a --seed as well.
FLAGS = flags.FlagValues()
_text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_int = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_real = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_CHECKPOINT = _text('checkpoint', '', 'Directory, smollm2-135m, or Hub id.')
_PROMPT = _text('prompt', '', 'What to continue.')
_PROMPTS = _text('prompts', '', 'File: a prompt a line.')
_CHAT = _bool('chat', None, 'Through the chat template; default: if any.')
_SYSTEM = _text('system', '', 'Instruction of a chat.')
_TOKENS = _int('tokens', 128, 'Most to generate.')
_STOP = _bool('stop', True, "At the checkpoint's end of text.")
_CACHE = _text(
  'cache', DEFAULT, 'kind:field=value,...+codec, or module:Name(...).'
)
_CAPACITY = _int('capacity', None, 'Of the cache, in tokens; default: enough.')
_LOAD = _text('prompt_cache', '', 'File to go on from.')
_SAVE = _text('save_prompt_cache', '', 'File to write after the prompts.')
_DTYPE = _text('dtype', None, 'Of params; default: as stored.')
_WEIGHTS = _text('weights', None, 'int8: a scale a channel.')
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
  if bool(_PROMPT.value) == bool(_PROMPTS.value):
    raise ValueError('Give one of --prompt=TEXT and --prompts=FILE.')
  path = _CHECKPOINT.value
  config = kvjax.load_config(path)
  words = tokenizer.load_tokenizer(path)
  file = _PROMPTS.value
  texts = prompts.read_prompts(file) if file else [_PROMPT.value]
  rows = prompts.encode_prompts(
    words, texts, chat=_CHAT.value, system=_SYSTEM.value
  )
  batch = prompts.make_batch(config, rows)
  source = None
  if config.encoder is not None:
    prompts.check_reads_text(config)
    source = batch
    start = [[tokenizer.start_token(path)]] * len(rows)
    batch = prompts.make_batch(config, start)
  sampling = {name: flag.value for name, flag in _SAMPLING.items()}
  if _PENALTY.value is not None:
    is_token = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    seen = np.where(is_token, batch.tokens, -1)
    sampling['adjust'] = kvjax.RepetitionPenalty(_PENALTY.value, seen)
  kind, codec = parse_cache(_CACHE.value)
  capacity = _CAPACITY.value
  if capacity is None:
    capacity = int(batch.lengths.max()) + _TOKENS.value - 1
  request = answer.Request(
    prompts=batch,
    source=source,
    cache={'capacity': capacity, 'kinds': kind, 'codec': codec},
    tokens=_TOKENS.value,
    stop_tokens=tokenizer.stop_tokens(path) if _STOP.value else (),
    block=_BLOCK.value,
    seed=_SEED.value,
    kernel=_KERNEL.value,
    sampling=sampling,
  )
  if not _LOAD.value:
    request.check_fits(cache_spec(config, len(rows), **request.cache))
  elif _CACHE.value != DEFAULT or _CAPACITY.value is not None:
    raise ValueError(
      f'prompt_cache={_LOAD.value} has its own kind and capacity: leave out '
      '--cache and --capacity.'
    )
  return texts, words, request


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    texts, words, request = check()
    model = kvjax.load_checkpoint(
      _CHECKPOINT.value, _DTYPE.value, weights=_WEIGHTS.value
    )
    cache = answer.open_cache(request, model, _LOAD.value)
  text = Streaming([words.stream() for _ in texts], request.stop_tokens)
  cache, watch = answer.write(request, model, cache, text, _SAVE.value)
  speed = watch.record(
    step_bytes=step_bytes(*model, cache),
    bandwidth=reading(64, 3),
    cache_bytes=array_bytes(cache),
  )
  print(describe(speed), file=sys.stderr)
  if _OUT.value:
    run = {'command': launch.command(), 'environment': records.environment()}
    for record in ({'record': 'run', **run}, *text.records(texts), speed):
      records.append(pathlib.Path(_OUT.value), record)
  if text.interrupted:
    raise SystemExit(130)


if __name__ == '__main__':
  launch.run(main, values=FLAGS)
