"""The measures of tests/structure.py, imports.py and sources.py."""

import pathlib
import textwrap

import pytest

from tests import imports, sources, structure


@pytest.fixture
def read(tmp_path):
  """Returns a function that writes files of a package and parses it."""

  def write_and_read(files: dict[str, str]) -> dict[str, sources.Module]:
    for path, text in files.items():
      file = tmp_path / 'kvjax' / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(textwrap.dedent(text))
    return sources.read_modules(tmp_path, 'kvjax')

  return write_and_read


def test_code_and_comment_lines(read):
  text = '''\
    """A docstring
    of two lines."""

    # A comment.
    def f(x):
      """Another one."""
      y = """A string
      of two lines."""  # A comment after code.
      return (
        x
      )
    '''
  module = read({'file.py': text})['kvjax.file']
  assert sources.code_lines(module) == 6
  assert sources.comment_lines(module) == 2


def test_names_of_modules_and_rooms(read):
  modules = read({'__init__.py': '', 'room/__init__.py': '', 'room/a.py': ''})
  rooms = {name: module.room for name, module in modules.items()}
  assert rooms == {
    'kvjax': '__init__',
    'kvjax.room': 'room',
    'kvjax.room.a': 'room',
  }


@pytest.mark.parametrize(
  'statement',
  [
    'import kvjax.room.b',
    'import kvjax.room.b as b',
    'from kvjax.room import b',
    'from kvjax.room.b import Name',
    'from . import b',
    'from .b import Name',
    'if TYPE_CHECKING:\n  from kvjax.room import b',
    'def f():\n  import kvjax.room.b',
    "importlib.import_module('kvjax.room.b')",
    "def __getattr__(name):\n  return load({'Name': 'kvjax.room.b'}[name])",
  ],
)
def test_a_module_is_imported(read, statement):
  files = {'__init__.py': '', 'room/__init__.py': '', 'room/b.py': ''}
  modules = read(files | {'room/a.py': statement})
  imported = imports.imported_modules(modules['kvjax.room.a'], modules)
  assert list(imported) == ['kvjax.room.b']


def test_a_string_imports_nothing_by_itself(read):
  modules = read({'a.py': "x = 'kvjax.b'", 'b.py': ''})
  assert not imports.imported_modules(modules['kvjax.a'], modules)


def test_unreachable_lines(read):
  face = """\
    import importlib
    from kvjax.a import f

    def __getattr__(name):
      return importlib.import_module({'late': 'kvjax.late'}[name])
    """
  modules = read(
    {
      '__init__.py': face,
      'a.py': 'import kvjax.room.b',
      'room/__init__.py': 'import kvjax.c',
      'room/b.py': '',
      'c.py': '',
      'late.py': '',
      'alone.py': 'x = 1\n\ny = 2\n',
    }
  )
  assert imports.unreachable_lines(modules) == {'kvjax.alone': 2}


def test_upward_imports(read):
  modules = read(
    {
      'caches/a.py': 'import kvjax.streams.a',
      'streams/a.py': 'import kvjax.caches.a',
      'attention/a.py': '\nimport kvjax.caches.a',
      'attic/a.py': 'import kvjax.streams.a',
    }
  )
  assert imports.upward_imports(modules) == [
    'kvjax/attention/a.py:2: attention -> kvjax.caches.a',
    'kvjax/attic/a.py:1: attic -> kvjax.streams.a',
    'kvjax/streams/a.py:1: streams -> kvjax.caches.a',
  ]
  assert imports.cache_imports(modules) == [
    'kvjax/attention/a.py:2: kvjax.caches.a',
    'kvjax/streams/a.py:1: kvjax.caches.a',
  ]


def test_circles(read):
  modules = read(
    {
      'a.py': 'import kvjax.b',
      'b.py': 'if TYPE_CHECKING:\n  import kvjax.c',
      'c.py': 'def f():\n  import kvjax.a',
      'd.py': 'import kvjax.a',
    }
  )
  assert imports.circles(modules) == ['kvjax.a, kvjax.b, kvjax.c']


def test_imports_package(read):
  modules = read(
    {'a.py': 'from experiments.b import c', 'b.py': 'import experiments_b'}
  )
  assert imports.imports_package(modules['kvjax.a'], 'experiments')
  assert not imports.imports_package(modules['kvjax.b'], 'experiments')


@pytest.mark.parametrize(
  ('definition', 'count'),
  [
    ('def f(a, b, c, d, e, f, g): 0', 0),
    ('def f(a, b, c, d, e, f, g, h): 0', 1),
    ('def f(a, b, c, d, e, f, g, *h): 0', 1),
    ('def f(a, /, b, c, d, e, f, g, **h): 0', 1),
    ('def f(a, b, c, d, *, e, f, g, h): 0', 0),
    ('def _f(a, b, c, d, *, e, f, g, h): 0', 1),
    ('class C:\n  def f(self, a, b, c, d, e, f, g): 0', 0),
    ('class C:\n  def f(self, a, b, c, d, e, f, g, h): 0', 1),
    ('class _C:\n  def f(self, a, b, c, d, *, e, f, g, h): 0', 1),
    ('def f():\n  if f:\n    def g(a, b, c, d, e, f, g, h): 0', 1),
  ],
)
def test_long_signatures(read, definition, count):
  modules = read({'a.py': definition})
  assert len(structure.long_signatures(modules)) == count


@pytest.mark.parametrize(
  ('body', 'count'),
  [
    ('x = a, b\n  f(*x)', 1),
    ('x = a, b\n  f(c, g(*x))', 1),
    ('x = [a, b]\n  f(*x)', 0),
    ('x = a, b\n  f(x)', 0),
    ('x = a, b\n  y = (*x, c)', 0),
    ('f(*a)', 0),
  ],
)
def test_packed_stars(read, body, count):
  modules = read({'a.py': f'def g(a, b, c):\n  {body}'})
  assert len(structure.packed_stars(modules)) == count


def test_repeated_class_names(read):
  twice = 'class A: 0\nclass B: 0'
  modules = read({'a.py': twice, 'b.py': 'def f():\n  class A: 0'})
  want = ['A: kvjax/a.py:1, kvjax/b.py:2']
  assert structure.repeated_class_names(modules) == want


def test_dialect_words(read, tmp_path):
  read({'a.py': '# one and one\n', 'b.h': '// one, ones, one_more', 'c.md': ''})
  word, other = structure.DIALECT[0], structure.DIALECT[-1]
  text = f'{word}, {word}s {word}_\n{other}.'
  for name in ('a.py', 'b.h', 'c.cc', 'd.md'):
    (tmp_path / 'kvjax' / name).write_text(text)
  assert structure.dialect_words(tmp_path) == {word: 3, other: 3}


def test_reading_order(read, tmp_path):
  read({'a.py': '1\n2\n', 'room/b.py': '1\n2\n3\n'})
  page = tmp_path / 'docs' / 'design.md'
  page.parent.mkdir()
  page.write_text('# Design\n\n`c.py`\n')
  assert structure.reading_order(tmp_path) == {}
  page.write_text(
    '# Design\n\n## Reading order\n\n1. `kvjax/a.py`\n2. `room/b.py`: `f`\n\n'
    '## Later\n\n`c.py`\n'
  )
  lengths = {'kvjax/a.py': 2, 'room/b.py': 3}
  assert structure.reading_order(tmp_path) == lengths


def test_the_path_of_calls(read, monkeypatch):
  path = ('kvjax.a.f', 'kvjax.b.C.g', 'kvjax.b.h', 'kvjax.b.absent')
  monkeypatch.setattr(structure, 'DECODE_PATH', path)
  modules = read(
    {
      'a.py': '@jit\ndef f(c):\n  "Calls."\n  return c.g(0)\n',
      'b.py': 'class C:\n  def g(self): return run(h)\ndef h(): 0',
    }
  )
  lengths = {'kvjax.a.f': 4, 'kvjax.b.C.g': 1, 'kvjax.b.h': 1}
  assert structure.path_lengths(modules) == lengths
  assert structure.broken_links(modules) == [
    'kvjax.b.absent does not exist',
    'kvjax.b.C.g does not call kvjax.b.h',
    'kvjax.b.h does not call kvjax.b.absent',
  ]


def test_unformatted_files(tmp_path: pathlib.Path):
  (tmp_path / 'a.py').write_text('x = 1\n')
  (tmp_path / 'b.py').write_text('x  =  1\n')
  assert structure.unformatted_files(tmp_path) == ['b.py']


def test_loaded_modules(read, tmp_path):
  read({'__init__.py': 'import kvjax.a', 'a.py': '', 'b.py': ''})
  assert structure.loaded_modules(tmp_path) == ['kvjax', 'kvjax.a']


def test_every_figure_has_a_row(read, tmp_path):
  read({'__init__.py': 'x = 1\n', 'a.py': '# A comment.\n'})
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'docs').mkdir()
  (tmp_path / 'docs' / 'design.md').write_text('# Design\n')
  rows = {row.title: row for row in structure.figures(tmp_path)}
  assert rows['code lines of kvjax/'].number == 1
  assert rows['comment lines a code line'].number == 1.0
  assert rows['modules that `import kvjax` loads'].names == ('kvjax',)
  assert rows['circles of imports'].number == 0
