"""docs/memory.md says what is true: its blocks print what stands below them."""

import contextlib
import io
import pathlib
import re

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'memory.md'


def blocks(text: str) -> list[tuple[str, str]]:
  return re.findall(r'```(\w+)\n(.*?)```', text, re.DOTALL)


def printed(code: str, scope: dict[str, object]) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    exec(compile(code, PAGE.name, 'exec'), scope)
  return out.getvalue()


def test_every_block_prints_what_follows_it():
  found = blocks(PAGE.read_text(encoding='utf-8'))
  scope: dict[str, object] = {}
  for (language, code), (after, text) in zip(
    found[::2], found[1::2], strict=True
  ):
    assert (language, after) == ('python', 'text')
    assert printed(code, scope) == text


def test_its_links_exist():
  for target in re.findall(r'\]\(([^)#]+)\)', PAGE.read_text('utf-8')):
    assert target.startswith('http') or (PAGE.parent / target).exists(), target
