"""Brings the repository's pages outside docs/ into the site of `make docs`.

MkDocs reads one folder. These hooks add the notebooks of examples/, which
nbconvert turns into Markdown, CONTRIBUTING.md and CHANGELOG.md; make links
between all of them lead to pages of the site; and expand a `*` in the nav, so
that a new page needs no entry. A link to a file that is no page keeps its text.
"""

import fnmatch
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = pathlib.Path(__file__).parents[1]
_LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)')
# A browser would show the end of such a line as a space.
_CHINESE_LINE = re.compile(
  r'(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff])'
)


def _places() -> dict[str, str]:
  """Returns the path in the site of each page outside docs/, by its file."""
  notebooks = sorted((ROOT / 'examples').glob('*.ipynb'))
  return {
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    **{f'examples/{x.name}': f'tutorials/{x.stem}.md' for x in notebooks},
  }


def on_config(config: MkDocsConfig) -> None:
  pages = [
    path.relative_to(config.docs_dir).as_posix()
    for path in pathlib.Path(config.docs_dir).rglob('*.md')
  ]
  config.nav = list(_expand(config.nav, sorted([*pages, *_places().values()])))


def _expand(nav: list, pages: list[str]) -> Iterator[str | dict]:
  """Yields a nav with names in place of patterns, without empty sections."""
  for entry in nav:
    if isinstance(entry, str):
      yield from fnmatch.filter(pages, entry) if '*' in entry else [entry]
      continue
    ((title, inside),) = entry.items()
    inside = (
      list(_expand(inside, pages)) if isinstance(inside, list) else inside
    )
    if inside:
      yield {title: inside}


def on_files(files: Files, config: MkDocsConfig) -> None:
  for source, place in _places().items():
    for path, content in _read(ROOT / source, place):
      files.append(File.generated(config, path, content=content))


def _read(path: pathlib.Path, place: str) -> Iterator[tuple[str, str | bytes]]:
  """Yields a page and, for a notebook, the pictures of its outputs."""
  if path.suffix == '.md':
    yield place, path.read_text('utf-8')
    return
  notebook = nbformat.read(path, as_version=4)
  notebook.metadata.setdefault('language_info', {'name': 'python'})  # colours
  markdown, resources = MarkdownExporter().from_notebook_node(
    notebook, {'unique_key': path.stem, 'output_files_dir': 'images'}
  )
  yield place, markdown
  for name, content in resources['outputs'].items():
    yield posixpath.join(posixpath.dirname(place), name), content


def on_page_markdown(
  markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
  """Returns the page with links that lead to pages of the site."""
  places = _places()
  sources = {place: source for source, place in places.items()}
  here = page.file.src_uri
  source = sources.get(here, f'docs/{here}')

  def replace_link(link: re.Match[str]) -> str:
    mark, text, target = link.groups()
    path, hash_mark, anchor = target.partition('#')
    if not path or ':' in path or files.get_file_from_path(_join(here, path)):
      return link[0]
    path = _join(source, path)
    place = places.get(path, path.removeprefix('docs/'))
    if files.get_file_from_path(place):
      nearby = posixpath.relpath(place, posixpath.dirname(here))
      return f'{mark}[{text}]({nearby}{hash_mark}{anchor})'
    is_no_page = os.path.exists(ROOT / path) and not path.startswith('docs/')
    return text if is_no_page else link[0]

  return _LINK.sub(replace_link, _CHINESE_LINE.sub('', markdown))


def _join(page: str, link: str) -> str:
  """Returns the path that a link on a page has, from the root of both."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
