"""The command line of every experiment: a config file, overrides, one line.

Importing an experiment parses nothing. A bad command line ends in one line
that names the value, the rule and the fix, with exit status 2, before anything
is compiled.
"""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_dict, config_flags

from experiments.reporting.writer import Unwritable

# `--help` of an experiment shows `--config` beside its own flags.
flags.disclaim_key_flags()

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BAD = (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error)


def define_config() -> flags.FlagHolder[Any]:
  """Returns the `--config` flag: `configs/x.py` or `configs/x.py:setting`."""
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, and after a colon its setting: configs/compare.py:tiny. '
    '--config.field=value overrides a field of it.',
    lock_config=True,
  )


def run(main: Callable[[list[str]], None], default: str = '') -> None:
  """Runs an experiment's main, with `configs/<default>` if none is given.

  Args:
    main: of the experiment.
    default: '' for an experiment that has no config.
  """

  def with_config(argv: list[str]) -> list[str]:
    given = [a.lstrip('-').split('=')[0] for a in argv[1:]]
    if default and 'config' not in given:
      argv = [argv[0], f'--config={ROOT / "configs" / default}', *argv[1:]]
    return parse(argv)

  app.run(_guarded(main), flags_parser=with_config)


def run_flags(
  main: Callable[[list[str]], None], values: flags.FlagValues
) -> None:
  """Runs a main that has no config file, with flags of its own."""
  flags.FLAGS.append_flag_values(values)
  values.mark_as_parsed()
  app.run(_guarded(main), flags_parser=parse)


def _guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Returns a main that ends in one line where it may write no files."""

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except Unwritable as error:
      refuse(str(error))

  return guarded


def parse(argv: list[str]) -> list[str]:
  """Parses flags; ends the program in one line where they are wrong."""
  # Which backends this machine lacks is no news to its owner.
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
  with door():
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f'{rest[1]!r} is no flag: flags begin with --.')
    return rest


@contextlib.contextmanager
def door() -> Iterator[None]:
  """Ends the program in one line where the command line asks for nonsense."""
  try:
    yield
  except _BAD as error:
    refuse(_message(error))


def refuse(message: str) -> NoReturn:
  """Ends the program with a line on stderr and exit status 2."""
  name = _program().rpartition('.')[2]
  line = ' '.join(message.split())
  print(f'{name}: {line}', file=sys.stderr)
  raise SystemExit(2)


def command() -> list[str]:
  """Returns the command line as another machine can run it."""
  return ['python', '-m', f'experiments.{_program()}', *sys.argv[1:]]


def _program() -> str:
  """Returns what `python -m experiments.` runs, in the words of Python."""
  parts = pathlib.Path(sys.argv[0]).with_suffix('').parts
  if 'experiments' in parts:  # the whole path of a file in it
    parts = parts[len(parts) - parts[::-1].index('experiments') :]
  else:
    parts = parts[-1:]
  return '.'.join(parts).removesuffix('.__main__')


def settled(
  config: flags.FlagHolder[Any], given: Mapping[str, flags.FlagHolder[Any]]
) -> Any:
  """Returns the config with the fields that flags of their own name."""
  return override(
    config.value, {name: flag.value for name, flag in given.items()}
  )


def override(config: Any, given: Mapping[str, Any]) -> Any:
  """Returns a copy with dotted fields set where the value is not None."""
  changed = config_dict.ConfigDict(config)
  changed.update_from_flattened_dict(
    {name: value for name, value in given.items() if value is not None}
  )
  return changed


def _message(error: Exception) -> str:
  text = str(error.args[0] if error.args else error)
  if 'Traceback' in text:  # of a config file, quoted whole by its flag
    text = text.rsplit('Error: ', 1)[-1]
  if isinstance(error, OSError) and (error.filename or _given('config')):
    reason = error.strerror or text.rsplit('] ', 1)[-1].split(':')[0]
    name = error.filename or f'config={_given("config")!r}'
    return f'{name} cannot be read: {reason}. Name a file.'
  if isinstance(error, KeyError | AttributeError):
    field, _, hint = text.replace('\\n', '\n').partition('\n')
    field = field.replace('\\', '').strip('"\'')
    known = hint.strip('"\'') or 'See the config file for its fields.'
    return f'The config has no field {field!r}. {known}'
  return text


def _given(flag: str) -> str | None:
  for argument in sys.argv[1:]:
    name, _, value = argument.lstrip('-').partition('=')
    if name == flag:
      return value
  return None
