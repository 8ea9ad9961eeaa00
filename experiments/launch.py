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
from typing import Any

import jax
from absl import app, flags
from jax import monitoring
from ml_collections import config_dict, config_flags

from experiments import processes
from experiments.reporting.blocks import without_controls
from kvjax.native import build
from kvjax.progress_bar import can_show

# So that `--help` of an experiment shows `--config` next to its other flags.
flags.disclaim_key_flags()

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILED = '/jax/core/compile/backend_compile_duration'
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
  *,
  arguments: bool = False,
  computes: bool = True,
) -> None:
  """Runs an experiment's main; a full disk ends it in one line.

  Args:
    main: of the experiment.
    default: name in `configs/` of the config file where no flag names one; ''
      for an experiment that has no config.
    values: flags of the experiment that are not among the global ones.
    arguments: whether words may follow the flags.
    computes: whether main itself computes, and so joins the processes of a step
      as `--distributed` says.
  """
  distributed = _define_distributed() if computes else None
  if values is not None:
    flags.FLAGS.append_flag_values(values)
    for name in values:  # so that `--help` lists them
      flags.FLAGS.register_flag_by_module(sys.argv[0], values[name])
    values.mark_as_parsed()

  def parse(argv: list[str]) -> list[str]:
    # JAX tells of every backend that the machine lacks and of every process
    # that joins; nothing can be done.
    for module in ('xla_bridge', 'distributed'):
      logging.getLogger(f'jax._src.{module}').setLevel(logging.WARNING)
    if default and _flag_text('config') is None:
      argv = [argv[0], f'--config={ROOT / "configs" / default}', *argv[1:]]
    with door():
      rest = flags.FLAGS(argv)
      if len(rest) > 1 and not arguments:
        raise ValueError(f'{rest[1]!r} is no flag: flags begin with --.')
      return rest

  def guarded(argv: list[str]) -> None:
    monitoring.register_event_duration_secs_listener(_announce)
    keep_programs()
    if distributed is not None:
      with door():
        processes.join(distributed.value)
    try:
      with processes.one_writer(flags.FLAGS):
        # What is read has been read: this is a file that cannot be written.
        with door((OSError,)):
          main(argv)
    except KeyboardInterrupt:
      raise SystemExit(130) from None

  app.run(guarded, flags_parser=parse)


def _define_distributed() -> flags.FlagHolder[Any]:
  return flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'yes', 'no'],
    'Join the processes of a step; auto: where it has several tasks.',
  )


def keep_programs() -> None:
  """Lets JAX keep compiled programs in the user's cache, for later processes.

  A user's own setting of JAX's compilation cache stays as it is.
  """
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  folder = build.programs_folder()
  if folder is not None:
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


@contextlib.contextmanager
def door(errors: tuple[type[Exception], ...] = _BAD) -> Iterator[None]:
  """Ends the program in one line, and status 2, at an error of the user.

  Args:
    errors: classes of such errors; the default are those of a command line
      that makes no sense.
  """
  try:
    yield
  except errors as error:
    name = _program().rpartition('.')[2]
    line = ' '.join(_message(error).split())
    print(f'{name}: {without_controls(line)}', file=sys.stderr)
    raise SystemExit(2) from None


def command() -> list[str]:
  """Returns the command line as another machine can run it."""
  return ['python', '-m', f'experiments.{_program()}', *sys.argv[1:]]


def _announce(event: str, duration_secs: float, **more: Any) -> None:
  """Prints a line for a compilation that somebody may have waited for."""
  if event == COMPILED and duration_secs > 1 and can_show():
    name = more.get('fun_name', 'a program')
    print(f'compiled {name} in {duration_secs:.1f} s', file=sys.stderr)


def _program() -> str:
  """Returns the module that `python -m experiments.` runs, dots between."""
  spec = sys.modules['__main__'].__spec__
  name = spec.name if spec else sys.argv[0]
  return name.removeprefix('experiments.').removesuffix('.__main__')


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
  if isinstance(error, OSError):
    name, reason = error.filename, error.strerror or text
    if text.startswith('Configuration '):  # the flag quotes the system's error
      name = f'config={_flag_text("config")!r}'
      reason = text.rsplit('] ', 1)[-1].split(':')[0]
    return f'{name} cannot be read: {reason}. Name a file.' if name else reason
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
