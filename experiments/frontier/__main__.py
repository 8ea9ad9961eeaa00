"""What does a smaller cache cost, at equal bytes? See configs/frontier.py.

Every cache of a table is made of the same contexts, read once, before anything
behind them is known; then predictions behind them are compared with those of
the full cache. x is bytes a token of all that lives, y what is lost of prose,
of quotes, of hidden numbers, and of pairs that cannot be guessed.
"""

import pathlib
from typing import Any

from absl import flags

from experiments import launch
from experiments.frontier import findings
from experiments.frontier.caches import Row
from experiments.frontier.contexts import ProseSize, RetrievalSize
from experiments.frontier.recall import Pairs
from experiments.frontier.study import (
  RECALLS,
  Study,
  estimate_minutes,
  parts_of,
  run,
)
from experiments.reporting import records
from experiments.reporting.blocks import markdown
from experiments.reporting.writer import start

_CONFIG = launch.define_config()
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', 'smollm2-135m', 'Directory, .gguf file, name, or Hub id.'
)
_TABLES = flags.DEFINE_multi_string(
  'table', ['main', 'recall'], 'Of the config. Repeat it for more.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'out/frontier', 'Where files go. What is there is not redone.'
)
_FLAGS = {
  'seed': flags.DEFINE_integer('seed', None, 'Of contexts and small models.'),
}


def check(config: Any) -> Study:
  """Returns the study; raises ValueError for what makes no sense."""
  pairs = config.pairs.to_dict() | {'growth': tuple(config.pairs.growth)}
  study = Study(
    checkpoint=_CHECKPOINT.value,
    seed=config.seed,
    prose=ProseSize(**config.prose),
    retrievals=tuple(RetrievalSize(**size) for size in config.retrievals),
    answered=tuple(config.answered),
    tried=config.tried,
    pairs=Pairs(**pairs),
    shape=config.model.to_dict(),
    tables={
      table: tuple(map(Row.of, names)) for table, names in config.tables.items()
    },
  )
  study.check(_TABLES.value)
  return study


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    study = check(config)
    lines = pathlib.Path(_WORKDIR.value) / 'frontier.jsonl'
    found = records.read([lines]) if lines.exists() else []
  run_facts = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(
    _WORKDIR.value, 'frontier', 'The frontier', run_facts, append=True
  )
  minutes = estimate_minutes(study, _TABLES.value)
  print(f'About {minutes:.0f} minutes on two cores, less what is known.')
  for table in _TABLES.value:
    for record in run(study, table, found):
      found.append(writer.record(record))
  current = {study.digest(table) for table in study.tables}
  found = [r for r in found if r.get('settings') in current]
  for table in dict.fromkeys([*_TABLES.value, *study.tables]):
    names = {row.name for row in study.tables[table]}
    is_whole = names <= {record.get('cache') for record in found}
    if table not in RECALLS and (table in _TABLES.value or is_whole):
      blocks = findings.costs(found, table, names, parts_of(table))
      writer = writer.show(*blocks)
  writer = writer.show(*findings.recalls(found))
  claims = findings.claims(found, config.expected)
  text = markdown(writer.title, (*writer.blocks, claims))
  (writer.workdir / 'frontier.md').write_text(text, encoding='utf-8')
  writer.finish(claims)


if __name__ == '__main__':
  launch.run(main, 'frontier.py')
