"""The notebooks of `examples/` run, and print what they show."""

import pathlib
import re
import sys
from typing import Any

import pytest

from kvjax.checkpoints.names import find_model

NEEDED = 'notebooks need the extras test and report'
pytest.importorskip('ipykernel', reason=NEEDED)
pytest.importorskip('matplotlib', reason=NEEDED)
nbformat = pytest.importorskip('nbformat', reason=NEEDED)
notebooks = pytest.importorskip('tests.notebooks', reason=NEEDED)

new_output = nbformat.v4.new_output
PATHS = {path.stem: path for path in notebooks.find_notebooks()}
REAL_MODEL = '2_real_model'
NAME = 'smollm2-135m'
MOST_CELLS = 25
MOST_PICTURE = 60_000  # bytes of a PNG; base64 takes 4 for 3

every_notebook = pytest.mark.parametrize('name', PATHS)


def has_model() -> bool:
  try:
    find_model(NAME)
  except FileNotFoundError:
    return False
  return True


def test_there_are_four() -> None:
  assert [name[:2] for name in PATHS] == ['1_', '2_', '3_', '4_']


@every_notebook
def test_it_prints_what_was_committed(name: str) -> None:
  if name == REAL_MODEL and not has_model():
    pytest.skip(f'{NAME} is absent: make model')
  committed = notebooks.read(PATHS[name])
  executed = notebooks.execute(committed)
  assert notebooks.find_difference(committed, executed) == ''


def test_the_real_model_may_be_absent() -> None:
  notebook = notebooks.read(PATHS[REAL_MODEL])
  changed = 0
  for cell in notebook.cells:
    if f"path = '{NAME}'" in cell.source:
      cell.source = cell.source.replace(NAME, 'no_such_model')
      changed += 1
  assert changed == 1
  text = '\n'.join(
    text
    for cell in notebooks.execute(notebook).cells
    for kind, text in notebooks.shown(cell)
    if kind == 'stdout'
  )
  assert text.count('is absent') == 1
  assert re.search(r'^bounded +288 ', text, re.MULTILINE)


@every_notebook
def test_it_is_a_clean_page(name: str) -> None:
  notebook = notebooks.read(PATHS[name])
  nbformat.validate(notebook)
  assert len(notebook.cells) <= MOST_CELLS
  assert set(notebook.metadata) == {'kernelspec'}
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  counts = [cell.execution_count for cell in code]
  assert counts == list(range(1, len(code) + 1))
  for cell in notebook.cells:
    assert not cell.metadata
    assert all(len(line) <= 80 for line in cell.source.splitlines())
  for output in (x for cell in code for x in cell.outputs):
    assert output.output_type in ('stream', 'display_data', 'execute_result')
    assert output.get('name', 'stdout') == 'stdout'
    picture = output.get('data', {}).get('image/png', '')
    assert len(picture) * 3 / 4 <= MOST_PICTURE


@every_notebook
def test_it_names_no_folder_of_a_machine(name: str) -> None:
  cells = notebooks.read(PATHS[name]).cells
  texts = [cell.source for cell in cells]
  texts += [text for cell in cells for _, text in notebooks.shown(cell)]
  for text in texts:
    assert not re.search(r'/(home|tmp|root|work|usr|Users)\b', text), text


@every_notebook
def test_links_lead_somewhere(name: str) -> None:
  for cell in notebooks.read(PATHS[name]).cells:
    if cell.cell_type == 'markdown':
      for target in re.findall(r'\]\(([^)#]+)', cell.source):
        file = notebooks.EXAMPLES / target
        assert target.startswith('https://') or file.exists(), target


@pytest.mark.parametrize(
  ('before', 'after', 'same'),
  [
    ('32 bytes', '32 bytes', True),
    ('32 bytes', '33 bytes', False),
    ('1,024 bytes', '1,025 bytes', False),
    ('differs by 0.71234', 'differs by 0.71235', True),
    ('differs by 7.1e-01', 'differs by 7.3e-01', False),
    ('cached nan', 'cached 1.5', False),
    ('element (4,): 1.5', 'element (5,): 1.5', False),
    ('keep k', 'keep v', False),
    ('keep k', 'keep k and v 2.0', False),
  ],
)
def test_same_text(before: str, after: str, same: bool) -> None:
  assert notebooks.is_same_text(before, after) == same


def page(*outputs: Any) -> Any:
  title = nbformat.v4.new_markdown_cell('# A page')
  code = nbformat.v4.new_code_cell('1', outputs=list(outputs))
  return nbformat.v4.new_notebook(cells=[title, code])


@pytest.mark.parametrize(
  ('outputs', 'difference'),
  [
    ([new_output('stream', text='two\n')], r"cell 1: .*'one\\n'.*'two\\n'"),
    ([], r"cell 1: .*'one\\n'.*''"),
    (
      [
        new_output('stream', text='one\n'),
        new_output('display_data', {'image/png': 'AA=='}),
      ],
      'cell 1: 1 outputs were committed, not 2',
    ),
    ([new_output('stream', text='one\n')], '$'),
    (
      [
        new_output('stream', text='one\n'),
        new_output('stream', name='stderr', text='slow'),
      ],
      '$',
    ),
  ],
  ids=('other_text', 'no_text', 'a_picture_more', 'equal', 'stderr_is_free'),
)
def test_a_difference_is_found(outputs: list[Any], difference: str) -> None:
  committed = page(new_output('stream', text='one\n'))
  found = notebooks.find_difference(committed, page(*outputs))
  assert re.match(difference, found), found


def test_the_kernel_is_this_python_and_this_checkout() -> None:
  code = 'import sys, kvjax; print(sys.executable, kvjax.__file__)'
  cells = [nbformat.v4.new_code_cell(code)]
  executed = notebooks.execute(nbformat.v4.new_notebook(cells=cells))
  (_, text), *others = notebooks.shown(executed.cells[0])
  package = notebooks.ROOT / 'kvjax' / '__init__.py'
  assert text.split() == [sys.executable, str(package)] and not others


def test_a_cell_that_raises_is_an_error() -> None:
  page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1 / 0')])
  with pytest.raises(Exception, match='division by zero'):
    notebooks.execute(page)


def test_a_written_page_differs_in_outputs_only(
  tmp_path: pathlib.Path,
) -> None:
  notebook = page(new_output('stream', text='one\n'))
  notebook.metadata.language_info = {'name': 'python', 'version': '3.11.7'}
  notebook.cells[1].metadata.execution = {'iopub.status.busy': 'noon'}
  notebooks.write(tmp_path / 'page.ipynb', notebook)
  written = notebooks.read(tmp_path / 'page.ipynb')
  assert written.metadata == {'kernelspec': notebooks.KERNEL}
  assert [cell.metadata for cell in written.cells] == [{}, {}]
  assert notebooks.find_difference(notebook, written) == ''
