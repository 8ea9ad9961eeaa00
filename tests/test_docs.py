"""Pages of the documentation: links, commands, sizes, and their examples."""

import fnmatch
import json
import pathlib
import re
from collections.abc import Iterator

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


def shows_what_it_prints(page: pathlib.Path) -> bool:
  return bool(re.search(r'```python\n[^`]*```\n+```text\n', page.read_text()))


EXECUTED = [
  str(x.relative_to(DOCS))
  for x in sorted(DOCS.rglob('*.md'))
  if shows_what_it_prints(x)
]


@pytest.mark.parametrize('name', EXECUTED)
def test_a_page_prints_what_it_shows(as_users_do, name):
  if name == 'howto/export_a_step.md':
    pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  run_blocks((DOCS / name).read_text())


def test_pages_with_examples_are_found():
  assert {'index.md', 'memory.md', 'howto/check_in_place.md'} <= set(EXECUTED)


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
