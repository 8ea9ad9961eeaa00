"""A library's name says what it depends on; a home that is absent costs it.

A home that cannot be read or is not there costs the library, and not a call.
"""

import pathlib
import re

import pytest

from kvjax.native import build


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
  monkeypatch.setattr(build, 'PACKAGE', tmp_path)
  monkeypatch.setattr(build, '_name', lambda: 'decode_cpu.so')
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  return tmp_path


def test_a_home_that_may_not_be_read_holds_no_library(
  nothing_built, monkeypatch
):
  exists = pathlib.Path.exists

  def guarded(path, **options):
    if '.cache' in path.parts:
      raise PermissionError(13, 'Permission denied', str(path))
    return exists(path, **options)

  monkeypatch.setattr(pathlib.Path, 'exists', guarded)
  assert build.find() is None


def test_a_user_without_a_home_has_no_library(nothing_built, monkeypatch):
  def homeless():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(pathlib.Path, 'home', homeless)
  assert build.find() is None
  monkeypatch.setattr(build.os, 'access', lambda *_: False)
  with pytest.raises(build.BuildError, match='no home.*XDG_CACHE_HOME'):
    build.build()


def test_the_package_comes_before_the_cache(nothing_built, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(nothing_built / 'cache'))
  monkeypatch.setattr(build.os, 'access', lambda *_: False)
  for folder in (nothing_built / 'cache' / 'kvjax', nothing_built):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'decode_cpu.so').touch()
  assert build.find() == nothing_built / 'decode_cpu.so'


def test_a_library_is_named_by_the_headers_and_not_by_their_release(
  monkeypatch, tmp_path
):
  def name(text, release):
    interface = tmp_path / release / 'xla/ffi/api'
    interface.mkdir(parents=True)
    (interface / 'api.h').write_text(text)
    monkeypatch.setattr(build, '_headers', lambda: tmp_path / release)
    return build._name()

  first = name('struct A;', '0.10.1')
  assert re.fullmatch(r'decode_cpu-[0-9a-f]{16}\.so', first)
  assert name('struct A;', '0.10.2') == first
  assert name('struct A; struct B;', '0.11.0') != first


def test_without_headers_nothing_is_found_and_a_build_says_so(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(build, '_headers', lambda: None)
  monkeypatch.setattr(build, 'PACKAGE', tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert build.find() is None
  with pytest.raises(build.BuildError, match='install jaxlib'):
    build.build()
