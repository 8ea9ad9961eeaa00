"""What a user waits for: a new process, and prompts of any length.

Each row of `cold` is a process of its own, from its start to the last token.
Peers write the same number of greedy tokens after the same prompt.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import kvjax
from experiments.measuring import fresh_start, llama_cpp, peers
from kvjax.checkpoints.names import find_model
from kvjax.text import prefill_in_chunks, prompts, smollm2

Row = dict[str, Any]
NO_CACHE = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}


def time_starts(chosen: Any) -> Iterator[Row]:
  """Yields the seconds of new processes: to load, to a token, to the last.

  Args:
    chosen: `cold` of the config.
  """
  try:
    path = str(find_model(chosen.model))
  except FileNotFoundError as error:
    yield {'record': 'cold', 'name': chosen.model, 'skipped': str(error)}
    return
  gguf, absence = _find_gguf(chosen)
  tokenizer = kvjax.text.load_tokenizer(path)
  (ids,) = prompts.encode_prompts(tokenizer, [chosen.prompt])
  with tempfile.TemporaryDirectory() as folder:
    kept = {
      'JAX_ENABLE_COMPILATION_CACHE': 'true',
      'JAX_COMPILATION_CACHE_DIR': folder,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    starts = {
      'kvjax': ('kvjax', path, NO_CACHE),
      'kvjax, writing its programs': ('kvjax', path, kept),
      'kvjax, with its programs': ('kvjax', path, kept),
      'kvjax, the .gguf with them': ('kvjax', gguf, kept),
      'transformers': ('transformers', path, {}),
      'llama.cpp': ('llama.cpp', gguf, {}),
    }
    absent = {
      'transformers': peers.transformers_absence(),
      'llama.cpp': llama_cpp.absence(),
    }
    expected = None
    _python('-c', 'import kvjax, kvjax.text')  # compiles sources to bytecode
    for name, (writer, source, variables) in starts.items():
      about = {'record': 'cold', 'name': name, 'prompt': len(ids)}
      if not source:
        continue
      if why := absent.get(writer):
        yield about | {'skipped': why}
        continue
      row = _start(writer, source, chosen.tokens, ids, variables)
      tokens = row.pop('tokens')
      expected = tokens if expected is None else expected
      row['equal'] = _equal(tokens, expected)
      if writer == 'kvjax':
        row['passed'] = tokens == expected
      if writer == 'llama.cpp':
        row['weights'] = llama_cpp.stored_type(source)
      yield about | {'written': len(tokens)} | row
  if absence:
    yield {'record': 'cold', 'name': 'rows of a .gguf', 'skipped': absence}


def time_chunks(chosen: Any, repeats: int) -> Iterator[Row]:
  """Yields warm seconds of prompts in chunks, and of the exact length."""
  try:
    config, params = kvjax.load_checkpoint(chosen.model)
  except FileNotFoundError as error:
    yield {'record': 'chunks', 'name': chosen.model, 'skipped': str(error)}
    return
  rng = np.random.default_rng(0)
  for length in chosen.lengths:
    ids = rng.integers(0, config.vocab_size, (1, length)).astype(np.int32)
    cache = kvjax.init_cache(config, 1, length)

    def call(feed: Callable[..., Any], ids=ids, cache=cache) -> Any:
      logits, _ = feed(config, params, cache, ids, donate=False)
      return jax.block_until_ready(logits)

    feeds = {'exact': kvjax.prefill, 'chunks': prefill_in_chunks}
    logits = {name: call(feed) for name, feed in feeds.items()}
    times = _fastest({name: (call, f) for name, f in feeds.items()}, repeats)
    error = float(abs(logits['chunks'] - logits['exact']).max())
    yield {
      'record': 'chunks',
      'name': 'kvjax in chunks',
      'model': chosen.model,
      'context': length,
      'seconds': times['chunks'],
      'exact_seconds': times['exact'],
      'ratio': times['chunks'] / times['exact'],
      'error': error / float(abs(logits['exact']).max()),
    }


def _find_gguf(chosen: Any) -> tuple[str, str]:
  """Returns the GGUF file of the same model, or '' and why there is none."""
  if chosen.gguf:
    return chosen.gguf, ''
  if chosen.model != smollm2.NAME:
    return '', (
      f"cold.gguf='' is the file of {smollm2.NAME} and not of {chosen.model}; "
      'give --config.cold.gguf=FILE'
    )
  try:
    return str(smollm2.source()), ''
  except FileNotFoundError as error:
    return '', str(error)


def _start(
  writer: str,
  path: str,
  tokens: int,
  ids: list[int],
  variables: Mapping[str, str],
) -> Row:
  """Returns tokens and seconds of one new process."""
  arguments = [writer, path, str(tokens), json.dumps(ids), repr(time.time())]
  done = _python('-m', fresh_start.__name__, *arguments, **variables)
  if done.returncode:
    lines = done.stderr.strip().splitlines()
    return {'tokens': [], 'skipped': lines[-1] if lines else 'it was ended'}
  return json.loads(done.stdout.splitlines()[-1])


def _python(
  *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
  """Returns a new interpreter that has ended.

  It keeps bytecode, as an installed package has it, whatever this process does.
  """
  environment = os.environ | variables
  environment.pop('PYTHONDONTWRITEBYTECODE', None)
  return subprocess.run(
    [sys.executable, *arguments],
    env=environment,
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )


def _equal(tokens: list[int], expected: list[int]) -> int:
  """Returns how many tokens both begin with."""
  pairs = enumerate(zip(tokens, expected, strict=False))
  unequal = (index for index, (one, two) in pairs if one != two)
  return next(unequal, min(len(tokens), len(expected)))


def _fastest(
  calls: Mapping[str, tuple[Callable[..., Any], Any]], repeats: int
) -> dict[str, float]:
  """Returns the least seconds of each call, all in turn."""
  times = dict.fromkeys(calls, float('inf'))
  for _ in range(repeats):
    for name, (call, feed) in calls.items():
      begin = time.perf_counter()
      call(feed)
      times[name] = min(times[name], time.perf_counter() - begin)
  return times
