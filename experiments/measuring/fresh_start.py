"""One process that loads a model and writes tokens, timed from its start.

  python -m experiments.measuring.fresh_start kvjax PATH 64 '[1, 2, 3]' SECONDS

SECONDS is the time of day at which the process was started. The prompt is token
ids, so no tokenizer is read. It imports nothing but what it measures.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Note = Callable[[str], None]  # notes the time under a name, once


def write_kvjax(
  path: str, ids: Sequence[int], count: int, note: Note
) -> list[int]:
  """Returns greedy tokens of kvjax after a prompt."""
  kvjax: Any = importlib.import_module('kvjax')
  np: Any = importlib.import_module('numpy')
  config, params = kvjax.load_checkpoint(path)
  note('load')
  cache = kvjax.init_cache(config, 1, len(ids) + count)
  prompt = np.asarray([ids], np.int32)
  logits, cache = kvjax.text.prefill_in_chunks(config, params, cache, prompt)
  stream = lambda new: note('first')
  tokens, _ = kvjax.generate(
    config, params, cache, logits, count, block=8, stream=stream
  )
  return np.asarray(tokens)[0].tolist()


def write_transformers(
  path: str, ids: Sequence[int], count: int, note: Note
) -> list[int]:
  """Returns greedy tokens of transformers after a prompt."""
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(path)
  model.generation_config.eos_token_id = None  # so that all tokens come
  note('load')

  class Streamer:
    """Takes the prompt, then a token at a time."""

    puts = 0

    def put(self, _: Any) -> None:
      self.puts += 1
      if self.puts == 2:
        note('first')

    def end(self) -> None:
      pass

  tokens = model.generate(
    torch.tensor([ids]),
    attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
    max_new_tokens=count,
    do_sample=False,
    streamer=Streamer(),
  )
  return tokens[0, len(ids) :].tolist()


def write_llama_cpp(
  path: str, ids: Sequence[int], count: int, note: Note
) -> list[int]:
  """Returns greedy tokens of llama.cpp after a prompt; path is a GGUF file."""
  llama_cpp: Any = importlib.import_module('llama_cpp')
  size = len(ids) + count
  model = llama_cpp.Llama(model_path=path, n_ctx=size, verbose=False)
  note('load')
  tokens = []
  for token in model.generate(list(ids), temp=0.0):
    note('first')
    tokens.append(int(token))
    if len(tokens) == count:
      break
  return tokens


WRITERS = {
  'kvjax': write_kvjax,
  'transformers': write_transformers,
  'llama.cpp': write_llama_cpp,
}


def main(argv: Sequence[str]) -> None:
  """Prints one line of JSON: tokens, and seconds since the start."""
  name, path, count, ids, start = argv
  times: dict[str, float] = {}

  def note(event: str) -> None:
    times.setdefault(event, time.time() - float(start))

  tokens = WRITERS[name](path, json.loads(ids), int(count), note)
  note('seconds')
  print(json.dumps({'tokens': tokens, **times}))


if __name__ == '__main__':
  main(sys.argv[1:])
