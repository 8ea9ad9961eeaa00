"""The command line of every experiment: a config file, and flags over it.

Importing an experiment parses nothing. A bad command line ends the program with
exit status 2 before anything is compiled, and with one line that names the
value, the rule and the fix.
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

# So that `--help` of an experiment shows `--config` next to its other flags.
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


def run(
  main: Callable[[list[str]], None],
  default: str = '',
  values: flags.FlagValues | None = None,
) -> None:
  """Runs an experiment's main; ends in one line if it cannot write its files.

  Args:
    main: of the experiment.
    default: name in `configs/` of the config file where no flag names one; ''
      for an experiment that has no config.
    values: flags of the experiment that are not among the global ones.
  """
  if values is not None:
    flags.FLAGS.append_flag_values(values)
    values.mark_as_parsed()

  def with_config(argv: list[str]) -> list[str]:
    names = [argument.lstrip('-').split('=')[0] for argument in argv[1:]]
    if default and 'config' not in names:
      argv = [argv[0], f'--config={ROOT / "configs" / default}', *argv[1:]]
    return parse(argv)

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except Unwritable as error:
      refuse(str(error))

  app.run(guarded, flags_parser=with_config)


def parse(argv: list[str]) -> list[str]:
  """Parses flags; ends the program in one line where they are wrong."""
  # JAX warns of every backend that the machine lacks; nothing can be done.
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
  with door():
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f'{rest[1]!r} is no flag: flags begin with --.')
    return rest


@contextlib.contextmanager
def door() -> Iterator[None]:
  """Ends the program in one line if the command line makes no sense."""
  try:
    yield
  except _BAD as error:
    refuse(_message(error))


def refuse(message: str) -> NoReturn:
  """Ends the program with a line on stderr and exit status 2."""
  name = _program().rpartition('.')[2]
  print(f'{name}:', *message.split(), file=sys.stderr)
  raise SystemExit(2)


def command() -> list[str]:
  """Returns the command line as another machine can run it."""
  return ['python', '-m', f'experiments.{_program()}', *sys.argv[1:]]


def _program() -> str:
  """Returns the module that `python -m experiments.` runs, dots between."""
  parts = pathlib.Path(sys.argv[0]).with_suffix('').parts
  if 'experiments' in parts:  # the whole path of a file in it
    parts = parts[len(parts) - parts[::-1].index('experiments') :]
  else:
    parts = parts[-1:]
  return '.'.join(parts).removesuffix('.__main__')


def settled(config: flags.FlagHolder[Any], plain: Mapping[str, Any]) -> Any:
  """Returns the config, its fields overridden by plain flags that are set."""
  values = {field: flag.value for field, flag in plain.items()}
  return override(config.value, values)


def override(config: Any, values: Mapping[str, Any]) -> Any:
  """Returns a copy with dotted fields set to the values that are not None."""
  changed = config_dict.ConfigDict(config)
  changed.update_from_flattened_dict(
    {field: value for field, value in values.items() if value is not None}
  )
  return changed


def _message(error: Exception) -> str:
  text = str(error.args[0] if error.args else error)
  if 'Traceback' in text:  # The flag quotes that of a config file whole.
    text = text.rsplit('Error: ', 1)[-1]
  if isinstance(error, OSError) and (error.filename or _flag_text('config')):
    reason = error.strerror or text.rsplit('] ', 1)[-1].split(':')[0]
    name = error.filename or f'config={_flag_text("config")!r}'
    return f'{name} cannot be read: {reason}. Name a file.'
  if isinstance(error, KeyError | AttributeError):
    field, _, hint = text.replace('\\n', '\n').partition('\n')
    field = field.replace('\\', '').strip('"\'')
    known = hint.strip('"\'') or 'See the config file for its fields.'
    return f'The config has no field {field!r}. {known}'
  return text


def _flag_text(flag: str) -> str | None:
  for argument in sys.argv[1:]:
    name, _, value = argument.lstrip('-').partition('=')
    if name == flag:
      return value
  return None
