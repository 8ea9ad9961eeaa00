"""Experiments among broken files, full disks, hostile names and interrupts.

A file that is broken is named, a name is shown as it is, and a sweep goes on.
"""

import errno
import importlib
import io
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

import kvjax
from experiments import launch
from experiments.generate.streaming import Streaming
from experiments.memory import tables
from experiments.reporting import records, writer
from experiments.reporting.blocks import Code, Heading, Picture, Table, Text
from experiments.reporting.groups import median_and_spread
from experiments.sweep import grid
from tests.checkpoints.writing import GOLDEN
from tests.experiments.commands import ROOT, Commands

PASS = [sys.executable, '-S', '-c', '']


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  """Yields a process that has imported what experiments import."""
  process = Commands(tmp_path_factory.mktemp('commands'))
  yield process
  process.end()


def without_controls(text):
  """Returns text without controls, as Unicode's own table says."""
  turns = {'LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI'}
  return ''.join(
    c
    for c in text
    if c in '\n\t'
    or not (
      unicodedata.category(c) == 'Cc'
      or unicodedata.bidirectional(c) in turns
      or c in '\u061c\u200e\u200f'  # marks, whose class is that of letters
    )
  )


# Record files.

RECORDS = {
  'nested': (b'{"a":' * 100_000, 'is no JSON: nested too deeply'),
  'bad_utf_8': (b'{"a": "\xff"}', "is no JSON: 'utf-8' codec can't decode"),
  'list': (b'[1]', 'holds no JSON object'),
  'merged': (b'{"a": 1}{"a": 2}', 'is no JSON: Extra data'),
  'long_integer': (b'{"a": %s}' % (b'1' * 5_000), 'is no JSON: Exceeds'),
  'two_equal_keys': (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
}


@pytest.mark.parametrize('name', RECORDS)
def test_broken_record(tmp_path, name):
  line, message = RECORDS[name]
  file = tmp_path / 'bad.jsonl'
  file.write_bytes(b'{"a": 1}\n' + line + b'\n')
  with pytest.raises(ValueError, match=rf'bad\.jsonl:2 .*{message}'):
    records.read([file])


TEXTS = {
  'line_separator': 'a\u2028b',
  'paragraph_separator': 'a\u2029b',
  'next_line': 'a\x85b',
  'form_feed': 'a\x0cb\x1cc',
  'carriage_return': 'a\r\nb',
  'half_a_pair': 'a\ud83db',
  'backslash': 'a\\ud83d',
  'zero': 'a\0b',
}


@pytest.mark.parametrize('name', TEXTS)
def test_text_of_a_record(tmp_path, name):
  file = tmp_path / 'x.jsonl'
  for _ in range(2):
    records.append(file, {'text': TEXTS[name]})
  assert records.read([file]) == [{'text': TEXTS[name]}] * 2


# A full disk: a device that takes nothing is where a file should be.

PNG = Picture('plot', b'png', 'caption')


@pytest.mark.parametrize('name', ['x.jsonl', 'x.html', 'plot.png'])
def test_full_disk(tmp_path, name):
  (tmp_path / name).symlink_to('/dev/full')
  with pytest.raises(OSError, match=f"{name}' cannot be written: No space"):
    writer.start(tmp_path, 'x', 'A title', {}).show(PNG).save()


def test_a_full_disk_ends_a_command_in_one_line(tmp_path, commands):
  (tmp_path / 'memory.jsonl').symlink_to('/dev/full')
  ended = commands('memory', '--model=llama-3-8b', f'--workdir={tmp_path}')
  assert ended.code == 2
  (line,) = [x for x in ended.err.splitlines() if x.startswith('memory: ')]
  assert "memory.jsonl' cannot be written: No space left on device" in line
  assert 'Traceback' not in ended.err


@pytest.mark.parametrize(
  ('error', 'line'),
  [
    (OSError(errno.ENOSPC, 'No space left'), 'No space left'),
    (OSError('/x cannot be written: full.'), '/x cannot be written: full.'),
    (ValueError('name \x1b[31m\x9b7m'), 'name [31m7m'),
  ],
)
def test_an_error_is_one_line_without_controls(capsys, error, line):
  with pytest.raises(SystemExit), launch.door():
    raise error
  assert capsys.readouterr().err.partition(': ')[2] == f'{line}\n'


# Names and texts on a terminal.

NAMES = {
  'closing_tag': 'dir[/x]name',
  'empty_closing_tag': '[/]',
  'colour': 'model[red]name',
  'shape': 'shape [4, 8] and [batch]',
  'link': '[link=http://x]here',
  'emoji': ':smile:',
  'colour_sequence': 'a\x1b[31mb',
  'clipboard_sequence': 'a\x1b]52;c;aGk=\x07b',
  'one_byte_sequence': 'a\x9b31mb\x84',
  'overwritten_line': 'a\rb\x08c\x7f',
  'overrides': 'a\u202eb\u202dc\u202cd\u202ae\u202bf',
  'isolates': 'a\u2066b\u2067c\u2068d\u2069e',
  'marks': 'a\u200eb\u200fc\u061cd',
  'letters_from_right_to_left': '\u05d0\u05d1 \u0627\u200d\u0628',
}
BLOCKS = {
  'heading': Heading,
  'sample': Code,
  'prompt': lambda name: Code('', prompt=name),
  'title': lambda name: Table(name, ('n',), [['x' * 40]]),
  'column': lambda name: Table('', (name,), [[0.5]]),
  'cell': lambda name: Table('', ('n',), [[name]]),
  'note': lambda name: Table('', ('n',), [['x' * 40]], note=name),
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('block', BLOCKS)
def test_name_in_a_report(tmp_path, capsys, block, name):
  writer.Writer(tmp_path, 'x', 'A title').show(BLOCKS[block](NAMES[name]))
  out = capsys.readouterr().out
  assert without_controls(NAMES[name]) in out
  assert without_controls(out) == out


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_path_of_a_report_commands_no_terminal(tmp_path, capsys):
  writer.start(tmp_path / '\x1b[31m', 'x', 'A title', {}).save()
  out = capsys.readouterr().out
  assert f'Report: {tmp_path}/[31m/x.html\n' in out


def test_a_paragraph_makes_no_link(tmp_path, monkeypatch):
  """Markdown is read in a paragraph, but what a link hides is shown."""
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stdout', terminal)
  text = Text('[here](http://x) \x1b]52;c;aGk=\x07')
  writer.Writer(tmp_path, 'x', 'A title').show(text)
  out = terminal.getvalue()
  assert 'http://x' in out
  assert '\x1b]' not in out and '\x07' not in out


def test_name_in_a_progress_bar(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with writer.progress('a[/x] \x1b]52;c;aGk=\x07', 1):
    pass
  out = terminal.getvalue()
  assert 'a[/x] ]52;' in out and '\x1b]' not in out


@pytest.mark.parametrize('rows', [1, 2])
def test_a_text_of_a_model_commands_no_terminal(rows):
  file = io.StringIO()
  text = 'a\x1b]52;c;aGk=\x07\r\tb\n'
  stream = Streaming([lambda _: text] * rows, file=file)
  stream.feed(np.zeros((rows, 1), np.int32))
  stream.close()
  assert file.getvalue().count('a]52;c;aGk=\tb\n') == rows
  assert without_controls(file.getvalue()) == file.getvalue()
  assert stream.records(['p'] * rows)[0]['text'] == text


def test_a_model_whose_path_has_markup(tmp_path, capsys):
  """The report of `experiments.memory --checkpoint=a[/evil]`."""
  config = kvjax.load_config(GOLDEN / 'llama')
  plan = kvjax.memory.plan(config, batch_size=1, capacity=8)
  report = writer.Writer(tmp_path, 'memory', 'A title')
  report.show(*tables.plan_table('a[/evil]', plan))
  out = capsys.readouterr().out
  assert 'The plan of a[/evil]' in out


# Summaries.


def test_repeats_with_a_nan_have_no_median():
  """A sorted list with a NaN in it has no middle."""
  for values in ([1.0, np.nan, 2.0], [np.nan, 1.0, 2.0]):
    median, spread = median_and_spread(values)
    assert np.isnan(median) and spread == 0


@pytest.mark.parametrize('name', ['generate', 'perplexity'])
def test_help_lists_the_flags(name, commands):
  module = importlib.import_module(f'experiments.{name}.__main__')
  ended = commands(name, '--help')
  for flag in module.FLAGS:
    assert f'--{flag}:' in ended.out or f'--[no]{flag}:' in ended.out


# Sweeps.

GRIDS = {
  'empty_value': 'a=1,,2',
  'empty_last_value': 'a=1,',
  'open_parenthesis': 'a=(1',
  'open_parenthesis_and_comma': 'a=(1,2',
  'closed_parenthesis': 'a=1)',
  'two_equal_values': 'a=1,2,1',
}


@pytest.mark.parametrize('name', GRIDS)
def test_grid(name):
  with pytest.raises(ValueError, match='must be name=value,value: .* twice'):
    grid.points([GRIDS[name]])


def test_points_have_folders_of_their_own():
  long = 'x' * 300
  values = ['a/b', 'a_b', 'a b', 'ä', 'ö', '../..', long, long + 'y', '\udcff']
  values += ['a', 'A', 'Ring(4)', 'ring(4)', 'RING(4)', 'k', '\u212a']
  names = [grid.folder({'x': value}) for value in values]
  # A file system may take one for the other when only the case differs.
  assert len({name.casefold() for name in names}) == len(values)
  for name in names:
    assert len(name.encode()) < 200 and pathlib.Path(name).name == name


STATUSES = {
  'empty': b'',
  'cut': b'{',
  'object_of_nothing': b'{}',
  'without_command': b'{"status": "done", "seconds": 1, "error": ""}',
  'list': b'[]',
  'null': b'null',
  'zeros': bytes(64),
  'nested': b'[' * 100_000,
  'bad_utf_8': b'{"status": "\xff"}',
}


@pytest.mark.parametrize('name', STATUSES)
def test_a_broken_status_is_named_and_its_point_run_again(
  tmp_path, capsys, name
):
  status = tmp_path / 'point.json'
  status.write_bytes(STATUSES[name])
  found = grid.run_point(PASS, {'a': '1'}, tmp_path)
  assert found['status'] == 'done' and 'skipped' not in found
  (line,) = capsys.readouterr().err.splitlines()
  assert str(status) in line and line.endswith('The point is run again.')
  assert json.loads(status.read_text()) == found
  assert grid.run_point(PASS, {'a': '1'}, tmp_path)['skipped']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space')])
def test_a_status_is_written_whole_or_not_at_all(tmp_path, monkeypatch, error):
  """An old status does not outlive the files that it was about."""
  assert grid.run_point(PASS, {}, tmp_path)['status'] == 'done'

  def write_half(path, text):
    path.write_bytes(text.encode()[:9])
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_text', write_half)
    try:
      found = grid.run_point([*PASS, 'x'], {}, tmp_path)
      assert (found['status'], found['error']) == ('failed', str(error))
    except KeyboardInterrupt:
      pass
  assert not (tmp_path / 'point.json').exists()
  assert 'skipped' not in grid.run_point(PASS, {}, tmp_path)
  assert grid.run_point(PASS, {}, tmp_path)['skipped']


def test_a_point_that_cannot_start_has_failed(tmp_path):
  (tmp_path / 'file').write_text('')
  for run, place, words in (
    (['/no/such/program'], 'a', "No such file or directory: '/no/such/program"),
    ([str(tmp_path / 'file')], 'b', 'Permission denied'),
    (PASS, 'file', "File exists: '"),
  ):
    found = grid.run_point(run, {}, tmp_path / place)
    assert found['status'] == 'failed' and words in found['error']


# Starts a process of its own, which says where it is, and waits for it.
GRANDCHILD = '(echo here; sleep 60) > {pipe} & wait'


@pytest.fixture
def pipe(tmp_path):
  """Yields a pipe for `GRANDCHILD`, and a function that reads it.

  The function returns b'' once no process is left that could write.
  """
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

  def read():
    assert select.select([reader], [], [], 30)[0], 'a process waits'
    return os.read(reader, 99)

  yield path, read
  os.close(reader)


def test_a_timeout_ends_all_processes_of_a_point(tmp_path, pipe):
  path, read = pipe
  command = ['sh', '-c', GRANDCHILD.format(pipe=path)]
  found = grid.run_point(command, {}, tmp_path / 'place', timeout=1.5)
  assert found['status'] == 'failed'
  assert found['error'] == 'timed out after 1.5 s'
  assert read() == b'here\n'
  assert read() == b''


# The program of `python -m experiments.sweep`, with a quick experiment. A shell
# that starts the tests in the background makes them ignore SIGINT.
SWEEP = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from experiments import launch
from experiments.sweep import __main__ as sweep, grid
launch.ROOT = grid.ROOT = pathlib.Path(sys.argv.pop(1))
launch.run(sweep.main, arguments=True)
"""
QUICK = """
import os, subprocess, sys
if '--config.x=slow' in sys.argv and not os.path.exists('released'):
  subprocess.run(['sh', '-c', {grandchild!r}])
"""


@pytest.mark.parametrize(
  ('ending', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_sweep_goes_on(tmp_path, pipe, ending, code):
  path, read = pipe
  folder = tmp_path / 'experiments' / 'quick'
  folder.mkdir(parents=True)
  (folder.parent / '__init__.py').touch()  # it comes before the project's
  program = QUICK.format(grandchild=GRANDCHILD.format(pipe=path))
  (folder / '__main__.py').write_text(program)

  def start():
    flags = [
      '--experiment=quick',
      '--grid=x=fast,slow',
      f'--workdir={tmp_path}',
    ]
    return subprocess.Popen(
      [sys.executable, '-c', SWEEP, str(tmp_path), *flags],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  first = start()
  assert read() == b'here\n'
  first.send_signal(ending)
  out, _ = first.communicate(timeout=30)
  assert read() == b''  # the process that the point started has ended
  assert first.returncode == code, out
  assert 'Traceback' not in out
  assert (tmp_path / 'x=fast' / 'point.json').exists()
  assert not (tmp_path / 'x=slow' / 'point.json').exists()
  (tmp_path / 'released').touch()
  second = start()
  out, _ = second.communicate(timeout=60)
  assert second.returncode == 0, out
  lines = [line.split('(')[0].strip() for line in out.splitlines()]
  assert lines == ['1/2 x=fast', 'skipped, done', '2/2 x=slow', 'done']
