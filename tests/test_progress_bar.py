"""A bar where somebody sees it, and nothing anywhere else."""

import importlib.util
import io
import subprocess
import sys
import types

import pytest

from kvjax.checkpoints import load
from kvjax.progress_bar import can_show, show_progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def open_terminal(monkeypatch):
  """Makes stderr a terminal; within the test, where pytest leaves it alone."""
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setattr(sys, 'stderr', Terminal())
  return sys.stderr


def without(monkeypatch, *names):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name in names else find(name, *rest),
  )


def test_a_terminal_shows_label_and_share(monkeypatch):
  pytest.importorskip('rich')
  terminal = open_terminal(monkeypatch)
  with show_progress('[b]read', 8) as advance:
    advance(2)
  out = terminal.getvalue()
  assert '[b]read' in out and '25%' in out


def test_work_of_unknown_length_is_shown(monkeypatch):
  pytest.importorskip('rich')
  terminal = open_terminal(monkeypatch)
  with show_progress('analyse', None):
    pass
  assert 'analyse' in terminal.getvalue()


def test_a_file_shows_nothing(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', io.StringIO())
  monkeypatch.delitem(sys.modules, 'ipykernel', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
  assert not can_show()
  with show_progress('read', 8) as advance:
    advance(2)
  assert sys.stderr.getvalue() == ''


def test_without_rich_nothing_is_shown(monkeypatch):
  terminal = open_terminal(monkeypatch)
  without(monkeypatch, 'rich')
  with show_progress('read', 8) as advance:
    advance(2)
  assert terminal.getvalue() == ''


@pytest.mark.parametrize('widgets', [True, False])
def test_a_notebook_needs_its_widgets(monkeypatch, widgets):
  monkeypatch.setattr(sys, 'stderr', io.StringIO())
  monkeypatch.setitem(sys.modules, 'ipykernel', types.ModuleType('ipykernel'))
  there = {'rich', 'ipywidgets'} if widgets else {'rich'}
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: name in there or None
  )
  assert can_show() is widgets


def test_a_program_that_shows_nothing_imports_no_rich():
  code = (
    'import sys; from kvjax.progress_bar import show_progress\n'
    "with show_progress('read', 8) as advance: advance(1)\n"
    "print('rich.progress' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout == 'False\n', done.stderr


def test_loading_counts_the_bytes_of_a_large_model(monkeypatch):
  shown = []

  class Bar:
    def __init__(self, label, total, *, in_bytes):
      shown.append((label, total, in_bytes))

    def __enter__(self):
      return shown.append

    def __exit__(self, *error):
      shown.append('closed')

  def source(*sizes):
    tensors = [types.SimpleNamespace(size=size) for size in sizes]
    return types.SimpleNamespace(tensors=tensors)

  monkeypatch.setattr(load, 'show_progress', Bar)
  monkeypatch.setattr(load, 'LARGE', 12)
  sources = [source(3, 4), source(5)]
  assert list(load._with_progress(sources)) == sources
  assert shown == [('Loading', 12, True), 7, 12, 'closed']
  shown.clear()
  assert list(load._with_progress(sources[:1])) == sources[:1]
  assert shown == []
