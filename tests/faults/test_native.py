"""A library that another user could have put there is not loaded.

A file that is loaded runs as this process does. Its name can be computed, so
anyone who can write to a folder that is searched could plant one.
"""

import os
import pathlib
import re

import pytest

from kvjax.native import build, load

NAME = 'decode_cpu.so'
STRANGER = 12345


@pytest.fixture
def home(monkeypatch, tmp_path):
  """A package, and a cache `home/.cache`, both without a library."""
  for folder in ('package', 'home/.cache/kvjax', 'start/relative/kvjax'):
    (tmp_path / folder).mkdir(parents=True)
  monkeypatch.setattr(build, 'PACKAGE', tmp_path / 'package')
  monkeypatch.setattr(build, '_name', lambda: NAME)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.chdir(tmp_path / 'start')
  return tmp_path


def plant(folder: pathlib.Path) -> pathlib.Path:
  library = folder / NAME
  library.touch()
  library.chmod(0o755)
  return library


def give_away(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Makes a place another user's; only root could do so on a disk."""
  stat = pathlib.Path.stat

  def changed(path, **options):
    fields = list(stat(path, **options))
    fields[4] = STRANGER if path == place else fields[4]
    return os.stat_result(fields)

  monkeypatch.setattr(pathlib.Path, 'stat', changed)


PLACES = {
  'library': 'home/.cache/kvjax/' + NAME,
  'folder': 'home/.cache/kvjax',
  'cache': 'home/.cache',
  'home': 'home',
  'a_folder_far_above': '.',
  'library_in_the_package': 'package/' + NAME,
  'package': 'package',
}


@pytest.mark.parametrize('place', PLACES.values(), ids=PLACES)
@pytest.mark.parametrize('fault', ['owner', 'group', 'all'])
def test_what_another_user_could_have_put_there(
  place, fault, home, monkeypatch
):
  in_package = place.startswith('package')
  plant(home / ('package' if in_package else 'home/.cache/kvjax'))
  assert build.find()
  if fault == 'owner':
    give_away(home / place, monkeypatch)
    said = f'{home / place} belongs to user {STRANGER}, and this process to'
  else:
    (home / place).chmod(0o775 if fault == 'group' else 0o777)
    said = f'other users may write to {home / place}. Remove the library, `ch'
  assert build.find() is None
  with pytest.warns(RuntimeWarning, match=re.escape(said)):
    assert said in load.missing.__wrapped__()


def test_nothing_built_is_no_reason_to_warn(home):
  assert 'make kernels' in load.missing.__wrapped__()


def test_a_sticky_folder_is_sound(home):
  """Others may write to it, as to /tmp, and rename nothing of ours."""
  library = plant(home / 'home/.cache/kvjax')
  (home / 'home').chmod(0o1777)
  assert build.find() == library
  library.chmod(0o1777)
  assert build.find() is None


def test_a_link_on_the_way_is_followed(home, monkeypatch):
  """Who may rename the folder that a link leads to has the library."""
  (home / 'shared').mkdir()
  (home / 'home/.cache').rename(home / 'shared/cache')
  (home / 'home/.cache').symlink_to(home / 'shared/cache')
  library = plant(home / 'home/.cache/kvjax')
  assert build.find() == library
  (home / 'shared').chmod(0o777)
  assert build.find() is None


def test_a_relative_cache_is_none(home, monkeypatch):
  plant(home / 'start/relative/kvjax')
  monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
  assert build.find() is None
  monkeypatch.setenv('HOME', 'relative')
  assert build.find() is None
  library = plant(home / 'home/.cache/kvjax')
  monkeypatch.setenv('HOME', str(home / 'home'))
  assert build.find() == library


def test_a_sound_library_is_found_behind_one_that_is_not(home):
  plant(home / 'package').chmod(0o777)
  library = plant(home / 'home/.cache/kvjax')
  assert build.find() == library


def test_a_checkout_of_a_group_is_trusted_as_its_code_is(home, monkeypatch):
  code = home / 'package/build.py'
  code.touch()
  code.chmod(0o664)
  monkeypatch.setattr(build, '__file__', str(code))
  library = plant(home / 'package')
  library.chmod(0o775)
  (home / 'package').chmod(0o775)
  assert build.find() == library
  library.chmod(0o777)
  assert build.find() is None


def test_nothing_is_built_where_it_would_not_be_loaded(home, monkeypatch):
  monkeypatch.setattr(build.os, 'access', lambda *_: False)
  (home / 'home/.cache').chmod(0o777)
  with pytest.raises(build.BuildError, match='other users may write to'):
    build.build()


def test_what_is_built_is_loaded_whatever_the_umask(home, monkeypatch):
  compiler = home / 'compiler'
  compiler.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\n: > "$1"')
  compiler.chmod(0o755)
  monkeypatch.setenv('CXX', str(compiler))
  monkeypatch.setenv('XDG_CACHE_HOME', str(home / 'new'))
  (home / 'new').mkdir(mode=0o755)
  mask = os.umask(0o002)
  try:
    library = build.build(home / 'new/kvjax')
  finally:
    os.umask(mask)
  assert build.find() == library
