"""Pages of the documentation: links, commands, sizes, and their examples.

tests/test_extend.py runs the pages `write_a_*`.
"""

import ast
import fnmatch
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest
import yaml

from tests.test_readme import run_blocks

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [
  *sorted(ROOT.glob('*.md')),
  *sorted(DOCS.rglob('*.md')),
  *sorted((ROOT / 'examples').glob('*.ipynb')),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LONGEST_PAGE = 250
TEMPLATES = (ROOT / 'experiments' / 'results_pages' / 'pages').glob('*.md')
GENERATED = {'dev/mutants.md', *(f'results/{x.name}' for x in TEMPLATES)}

# Errors whose messages are kvjax's, and one that JAX raises by the same class.
OURS = {'ValueError', 'DonatedCacheError', 'FileNotFoundError'}
JAX_SAYS = 'Received incompatible devices'


def text_of(page: pathlib.Path) -> str:
  """Returns a page, or the Markdown cells of a notebook."""
  if page.suffix == '.md':
    return page.read_text()
  cells = json.loads(page.read_text())['cells']
  texts = (''.join(x['source']) for x in cells if x['cell_type'] == 'markdown')
  return '\n\n'.join(texts)


def anchors(page: pathlib.Path) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub makes them.

  A page of the reference has one for each public name as well.
  """
  text = re.sub(r'```.*?```', '', text_of(page), flags=re.DOTALL)
  titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  words = (re.sub(r'[^\w\- ]', '', title.lower()) for title in titles)
  names = re.findall(r'^::: (\S+)$', text, re.MULTILINE)
  return {*(word.replace(' ', '-') for word in words), *names}


@pytest.mark.parametrize('name', NAMES)
def test_local_links_lead_to_a_file_and_a_heading(name):
  page = ROOT / name
  for link in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
    if re.match(r'https?:', link):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), (name, link)
    if anchor:
      assert anchor in anchors(target), (name, link)


# A page that imports kvjax is a whole program; others show single lines.
EXECUTED = [
  name
  for name in NAMES
  if name.startswith('docs/')
  and '\nimport kvjax\n' in text_of(ROOT / name)
  and '/write_a_' not in name
  and '/run_on_two_processes' not in name
]


@pytest.mark.parametrize('name', EXECUTED)
def test_a_page_prints_what_it_shows(name, as_users_do, monkeypatch, tmp_path):
  if name.endswith('export_a_step.md'):
    pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  page = ROOT / name
  devices = re.search(r'JAX_NUM_CPU_DEVICES=(\d+)', page.read_text())
  if devices is not None:
    return run_on_devices(page, devices[1])
  (tmp_path / 'tests').symlink_to(ROOT / 'tests')
  monkeypatch.chdir(tmp_path)  # for the files that a page writes
  with jax.numpy_dtype_promotion('standard'):  # optax counts in Python ints
    run_blocks(page.read_text())


def test_pages_with_examples_are_found():
  assert {'docs/index.md', 'docs/memory.md', 'docs/howto/shard.md'} <= set(
    EXECUTED
  )


def run_on_devices(page: pathlib.Path, devices: str) -> None:
  """Runs a page in a process with several CPU devices."""
  program = 'import sys; from tests.test_readme import run_blocks; '
  program += 'run_blocks(open(sys.argv[1]).read())'
  run = subprocess.run(
    [sys.executable, '-c', program, str(page)],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': devices, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not run.returncode, run.stderr[-2_000:]


def test_a_script_of_two_processes_prints_what_its_page_shows(tmp_path):
  page = (DOCS / 'howto' / 'run_on_two_processes.md').read_text()
  (script,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  (shown,) = re.findall(r'```text\n(.*?)```', page, re.DOTALL)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  assert script.count('9876') == 1
  path = tmp_path / 'split_decode.py'
  path.write_text(script.replace('9876', port))
  env = {'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'}
  env |= {'PYTHONPATH': str(ROOT)}
  runs = [
    subprocess.Popen(
      [sys.executable, str(path), process],
      env=os.environ | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in '01'
  ]
  try:
    (printed, errors), (nothing, _) = (x.communicate(timeout=300) for x in runs)
  finally:
    for run in runs:
      run.kill()
  # Before it, the transport of JAX writes its own lines to the same stream.
  assert printed.endswith(shown), (printed, errors[-2_000:])
  assert shown.splitlines()[0] not in nothing
  assert [run.returncode for run in runs] == [0, 0]


def test_messages_that_a_how_to_quotes_are_those_of_the_source():
  """Each has the words of some string of the package."""
  words = set()
  for path in (ROOT / 'kvjax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words.add(' '.join(node.value.split()))
  words = {x for x in words if len(x) >= 12 and ' ' in x}
  quoted = []
  for page in (ROOT / 'docs' / 'howto').glob('*.md'):
    found = re.findall(r'`(\w+Error): ([^`]+)`', page.read_text())
    quoted += [
      (page.name, ' '.join(x.split())) for kind, x in found if kind in OURS
    ]
  assert len(quoted) > 20
  for page, message in quoted:
    if not message.startswith(JAX_SAYS):
      assert any(x in message for x in words), (page, message)


def test_the_page_of_a_family_shows_its_file():
  page = (ROOT / 'docs' / 'howto' / 'add_a_family.md').read_text()
  family = ROOT / 'kvjax' / 'checkpoints' / 'families' / 'olmo2.py'
  assert f'```python\n{family.read_text()}```' in page


@pytest.mark.parametrize('name', NAMES)
def test_commands_of_a_page_exist(name):
  text = text_of(ROOT / name)
  if name == 'CHANGELOG.md':  # it names commands that are gone
    text = re.sub(r'(?m)^ *\| `python.*$', '', text)
  makefile = (ROOT / 'Makefile').read_text()
  for target in set(re.findall(r'(?:`|^    )make ([\w-]+)', text, re.M)):
    assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
  for module in set(
    re.findall(r'python -m ((?:experiments|tests)[\w.]+)', text)
  ):
    path = ROOT / module.rstrip('.').replace('.', '/')
    main = path / '__main__.py'
    assert path.with_suffix('.py').exists() or main.exists(), module


def test_no_page_is_long_unless_a_program_writes_it():
  pages = {str(x.relative_to(DOCS)): x for x in DOCS.rglob('*.md')}
  lengths = {
    name: page.read_text().count('\n')
    for name, page in pages.items()
    if name not in GENERATED
  }
  assert not {x: n for x, n in lengths.items() if n > LONGEST_PAGE}


def nav_pages(nav: list) -> Iterator[str]:
  """Yields the paths and patterns of a nav of mkdocs.yml."""
  for entry in nav:
    if isinstance(entry, str):
      yield entry
      continue
    (inside,) = entry.values()
    yield from nav_pages(inside if isinstance(inside, list) else [inside])


def test_every_page_is_in_the_navigation_of_the_site():
  """`make docs` finds the same, where the tools of the site are installed."""
  settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
  patterns = list(nav_pages(settings['nav']))
  pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob('*.md')]
  outside = ['contributing.md', 'changelog.md', 'tutorials/1_first_cache.md']
  for page in pages:
    assert any(fnmatch.fnmatch(page, x) for x in patterns), page
  for pattern in patterns:
    assert fnmatch.filter([*pages, *outside], pattern), pattern
