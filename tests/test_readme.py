"""The README says what is true: its code runs and prints what it shows."""

import contextlib
import io
import pathlib
import re
from typing import Any

import pytest

from experiments.reporting import records
from kvjax.checkpoints.names import find_model

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```(\w+)\n(.*?)```', README, re.DOTALL)


def test_it_starts_fast():
  lines = README.splitlines()
  at = lambda text: next(i for i, x in enumerate(lines, 1) if text in x)
  assert at('docs/images/') <= 10
  assert at('pip install') <= 20
  assert at('```python') <= 35
  first = next(code for language, code in BLOCKS if language == 'python')
  assert len(first.splitlines()) <= 25


def run_blocks(page: str, leave_out: str | None = None) -> dict[str, Any]:
  """Runs a page's Python blocks in order; compares what they print.

  Returns the names that the blocks define.

  Args:
    page: Markdown. What a block prints is in the block of `text` that follows
      it, or in the comments that end it.
    leave_out: text of blocks that cannot run here: only their imports do.
  """
  blocks = re.findall(r'```(\w+)\n(.*?)```', page, re.DOTALL)
  scope: dict[str, Any] = {}
  for index, (language, code) in enumerate(blocks):
    if language != 'python':
      continue
    if leave_out is not None and leave_out in code:
      code = '\n'.join(re.findall(r'^(?:import|from) .*', code, re.MULTILINE))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      exec(compile(code, f'block {index}', 'exec'), scope)
    printed = [line.rstrip() for line in out.getvalue().splitlines()]
    assert printed == _shown(code, [*blocks, ('', '')][index + 1]), code
  return scope


def _shown(code: str, following: tuple[str, str]) -> list[str]:
  """Returns the lines that a page shows as the output of a block."""
  language, text = following
  if language == 'text':
    return [line.rstrip() for line in text.splitlines()]
  ending = re.search(r'(?:^# .*\n)*\Z', code, re.MULTILINE)
  assert ending is not None
  return [line.removeprefix('# ') for line in ending[0].splitlines()]


def test_every_python_block_prints_what_follows_it():
  """Where `make model` has not been called, all but the block of SmolLM2."""
  code = [block for language, block in BLOCKS if language == 'python']
  assert len(code) == 5 and all(_shown(block, ('', '')) for block in code)
  try:
    find_model('smollm2-135m')
  except FileNotFoundError:
    run_blocks(README, leave_out='smollm2-135m')
  else:
    run_blocks(README)


def test_local_links_exist():
  for target in re.findall(r'\]\(([^)#]+)\)', README):
    if not target.startswith('http'):
      assert (ROOT / target).exists(), target


def test_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  for target in set(re.findall(r'`make ([\w-]+)', README)):
    assert re.search(rf'^{target}:', makefile, re.MULTILINE), target


def test_the_table_of_bytes_is_what_the_configs_say():
  import kvjax
  from experiments.measuring.small_example import llama_bytes, llama_models
  from experiments.training.variants import bytes_per_token

  models = llama_models()
  for name, (kept, query) in llama_bytes().items():
    int8 = bytes_per_token(models[name], kvjax.Int8())
    row = next(x for x in README.splitlines() if x.startswith(f'| {name}, '))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[2:] == [f'{x:,}' for x in (kept, int8, query)]


def test_the_table_of_caches_is_what_the_records_say():
  costs = {
    (r['label'], r['reading'], r['part']): r
    for r in records.read([ROOT / 'results' / 'frontier.jsonl'])
    if r['record'] == 'cost'
  }
  labels = {
    'Dense()': 'float32',
    'Int8()': 'int8',
    'KIVI(4)': 'kivi(bits=4,window=32)',
    'Hadamard(Affine(4))': 'hadamard(affine)',
    'Centred(Hadamard(Affine(2)))': 'centred(hadamard(affine(bits=2)))',
    'Bounded(256, KeyDiff())': 'key_diff 256',
    'Bounded(256, SnapKV())': 'snapkv 256',
    'Sinks(4, window=252)': 'sinks:sinks=4,window=252',
    'Ring(window=256)': 'ring:window=256',
  }
  for name, label in labels.items():
    row = next(x for x in README.splitlines() if x.startswith(f'| `{name}`'))
    *_, stored, kl, digits = (x.strip() for x in row.strip('|').split('|'))
    prose = costs[label, 'prose', 'prose']
    numbers = costs[label, '4 numbers in 1024', 'retrieval']
    assert stored == f'{prose["bytes_per_token"]:,.0f}'
    assert kl == f'{prose["kl_mean"]:.2g}'
    assert digits == f'{numbers["right"]:.0%}'


def test_the_table_of_speed_is_what_the_records_say():
  from experiments.results_pages.__main__ import speed_table

  assert speed_table() in README


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 130


@pytest.mark.parametrize('module', ['sweep', 'aggregate'])
def test_flags_of_the_commands_exist(module):
  source = (ROOT / 'experiments' / module / '__main__.py').read_text()
  page = (ROOT / 'docs' / 'howto' / 'sweep_an_experiment.md').read_text()
  commands = ' '.join(re.findall(r'```sh\n(.*?)```', page, re.DOTALL))
  line = commands.replace('\\\n', ' ').split(f'experiments.{module}')[1]
  line = line.split('\n')[0].split(' -- ')[0]
  assert '--' in line
  for flag in re.findall(r'--(\w+)', line):
    assert f"'{flag}'" in source
