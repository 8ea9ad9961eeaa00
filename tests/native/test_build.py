"""A home that cannot be read or is not there costs the library, not a call."""

import pathlib

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
