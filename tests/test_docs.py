"""Links of the documentation lead somewhere, and its code prints what it says.

tests/test_extend.py runs the pages `write_a_*`.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from tests.test_readme import run_blocks

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# A page that imports kvjax is a whole program; others show single lines.
HOW_TOS = [
  page.stem
  for page in sorted((ROOT / 'docs' / 'howto').glob('*.md'))
  if '\nimport kvjax\n' in page.read_text() and page.stem[:8] != 'write_a_'
]
# Errors whose messages are kvjax's, and one that JAX raises by the same class.
OURS = {'ValueError', 'DonatedCacheError', 'FileNotFoundError'}
JAX_SAYS = 'Received incompatible devices'


def anchors(page: pathlib.Path) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub makes them."""
  text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
  titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  words = (re.sub(r'[^\w\- ]', '', title.lower()) for title in titles)
  return {word.replace(' ', '-') for word in words}


@pytest.mark.parametrize('name', NAMES)
def test_local_links_lead_to_a_file_and_a_heading(name):
  page = ROOT / name
  for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
    if re.match(r'https?:', link):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), (name, link)
    if anchor:
      assert anchor in anchors(target), (name, link)


@pytest.mark.parametrize('name', HOW_TOS)
def test_a_how_to_prints_what_it_shows(
  name, as_users_do, monkeypatch, tmp_path
):
  if name == 'export_a_step':
    pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  page = ROOT / 'docs' / 'howto' / f'{name}.md'
  devices = re.search(r'JAX_NUM_CPU_DEVICES=(\d+)', page.read_text())
  if devices is not None:
    return run_on_devices(page, devices[1])
  (tmp_path / 'tests').symlink_to(ROOT / 'tests')
  monkeypatch.chdir(tmp_path)  # for the files that a page writes
  with jax.numpy_dtype_promotion('standard'):  # optax counts in Python ints
    run_blocks(page.read_text())


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
  text = (ROOT / name).read_text()
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
