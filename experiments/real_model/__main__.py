"""What does a smaller cache cost a trained model? See configs/real_model.py.

Answers one question through four caches, then compares predictions behind a
context that each cache has compressed: their distance from those of the full
cache, and numbers that were hidden in the context.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

import kvjax
from experiments import launch
from experiments.real_model import answers, cost, findings
from experiments.real_model.task import Size, Task, make_task
from experiments.reporting.writer import start
from kvjax.decoding.allocate import cache_spec
from kvjax.decoding.parse import parse_cache
from kvjax.text import load_tokenizer, stop_tokens
from kvjax.text.tokenizer import Tokenizer

_CONFIG = launch.define_config()
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', 'smollm2-135m', 'Directory, .gguf file, name, or Hub id.'
)
_WORKDIR = flags.DEFINE_string('workdir', 'out/real_model', 'Where files go.')
_FLAGS = {
  'caches': flags.DEFINE_multi_string(
    'cache', None, 'The first must forget nothing. Repeat it for more.'
  ),
  'answer.prompt': flags.DEFINE_string('prompt', None, 'To answer.'),
  'seed': flags.DEFINE_integer('seed', None, 'Of the hidden numbers.'),
}


@dataclasses.dataclass(frozen=True)
class RealSetup:
  """The config, checked and turned into what the library takes."""

  tokenizer: Tokenizer
  stops: tuple[int, ...]
  task: Task
  caches: dict[str, dict[str, Any]]
  question: answers.Question


def check(config: Any) -> RealSetup:
  """Returns the setup; raises ValueError for what makes no sense."""
  name = _CHECKPOINT.value
  model = kvjax.load_config(name)
  if model.encoder is not None:
    raise ValueError(f'{name} reads a source besides the text.')
  tokenizer = load_tokenizer(name)
  task = make_task(tokenizer, Size(**config.task), config.seed)
  if max(task.contexts.max(), task.following.max()) >= model.vocab_size:
    raise ValueError(
      f'{name} knows {model.vocab_size} tokens, and its tokenizer more: the '
      'checkpoint needs its own tokenizer.json.'
    )
  caches = {}
  for spelled in config.caches:
    kind, codec = parse_cache(spelled)
    caches[spelled] = {'kinds': kind, 'codec': codec}
  question = answers.Question(**config.answer)
  _check_room(
    model,
    f'task.context={config.task.context} with what follows',
    task.capacity,
    caches,
  )
  _check_room(
    model,
    f'answer.prompt with answer.tokens={question.tokens}',
    question.encode(model, tokenizer)[1],
    question.caches(),
  )
  return RealSetup(
    tokenizer=tokenizer,
    stops=stop_tokens(name),
    task=task,
    caches=caches,
    question=question,
  )


def _check_room(
  model: kvjax.ModelConfig,
  name: str,
  capacity: int,
  caches: Mapping[str, Mapping[str, Any]],
) -> None:
  """Raises ValueError if the model has too few positions, or no such cache."""
  if model.positions and capacity > model.positions:
    raise ValueError(
      f'{name} takes {capacity} tokens, more than the {model.positions} '
      'positions of the model. Make it shorter, or take another model.'
    )
  for options in caches.values():
    cache_spec(model, 1, capacity, **options)  # raises


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
    model, params = kvjax.load_checkpoint(_CHECKPOINT.value)
  run = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'real_model', 'What a cache costs', run)
  records = []
  for record in answers.answer(
    setup.question, model, params, setup.tokenizer, setup.stops
  ):
    records.append(writer.record(record))
  for record in cost.measure(model, params, setup.task, setup.caches):
    records.append(writer.record(record))
  records.append(writer.record(cost.uncached_check(model, params, setup.task)))
  writer = writer.show(
    *findings.answers(records),
    *findings.costs(records, setup.task.contexts.shape[1]),
  )
  writer.finish(findings.claims(records, config.expected))


if __name__ == '__main__':
  launch.run(main, 'real_model.py')
