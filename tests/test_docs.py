"""Links between the pages of the documentation lead somewhere."""

import pathlib
import re

import pytest

from tests.test_readme import run_blocks

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md'))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


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


@pytest.mark.parametrize(
  'name', ['adjust_logits', 'check_in_place', 'export_a_step']
)
def test_a_how_to_prints_what_it_shows(as_users_do, name):
  if name == 'export_a_step':
    pytest.importorskip('flatbuffers', reason='jax.export serializes by it')
  run_blocks((ROOT / 'docs' / 'howto' / f'{name}.md').read_text())


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
