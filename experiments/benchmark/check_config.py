"""Refuses a wrong config of a benchmark before anything is measured."""

from collections.abc import Iterable
from typing import Any

from flax.traverse_util import flatten_dict

from experiments.benchmark import cache_kinds
from experiments.benchmark.gpu import tile_sweep
from experiments.measuring import attention, forms, model
from experiments.measuring.variants import with_attention
from kvjax.decoding.parse import parse_cache
from kvjax.kernels import KERNELS

COUNTS = ('repeats', 'calls', 'together', 'bandwidth')
# Fields whose entries are whole numbers above 0, and how many an entry has.
SIZES = {
  'steps': 2,
  'generate': 3,
  'layer': 2,
  'products': 3,
  'prompts': 1,
  'overhead': 1,
  'cold.lengths': 1,
  'caches.sizes': 2,
  'variants.sizes': 2,
  'attention.shapes': 3,
  'attention.cases': 2,
  'sweep.shapes': 2,
}
# Fields whose entries are names, and the known ones.
NAMES: dict[str, Iterable[Any]] = {
  'kernels': KERNELS,
  'prompt_kernels': forms.PROMPT_KERNELS,
  'attention.dtypes': attention.TOLERANCE,
  'sweep.axes': tile_sweep.AXES,
  'forms': ('', *forms.FORMS),
  'checks.forms': ('', *forms.FORMS),
}


def check(config: Any, known: Iterable[str]) -> None:
  """Raises if a config names something unknown or impossible.

  Args:
    config: of the experiment.
    known: names of sections.

  Raises:
    ValueError: names the field, its value, the rule and the fix.
  """
  flat: Any = flatten_dict(config.to_dict(), sep='.')
  if not config.sections:
    raise ValueError('sections= is empty: name at least one.')
  for name in COUNTS:
    if config[name] < 1:
      raise ValueError(f'{name}={config[name]} must be 1 or more.')
  for name, count in SIZES.items():
    for sizes in flat.get(name, ()):
      _check_sizes(name, [sizes] if count == 1 else sizes, count)
  for case in flat.get('latent', ()):
    sizes = case[:-1] if isinstance(case, tuple) else case
    _check_sizes('latent', sizes, 6)
    _check_names('latent', case[-1:], model.TOLERANCE)
  for name, names in {'sections': known, **NAMES}.items():
    _check_names(name, flat.get(name, ()), names)
  for text in flat.get('caches.names', ()):
    parse_cache(text)
  for name in config.models:
    if f'{name}.layers' not in flat:
      raise ValueError(f'models: {name!r} is no model of this config.')
    _check_names(f'{name}.dtype', [config[name].dtype], model.TOLERANCE)
    model.describe(config[name])
  for name in flat.get('variants.names', ()):
    with_attention(model.describe(config[config.models[0]]), name)
  _check_room(config)


def _check_names(field: str, names: Iterable[Any], known: Iterable[Any]):
  for name in names:
    if name not in known:
      listed = ', '.join(str(x) for x in known if x != '')
      raise ValueError(f'{field}: {name!r} is unknown; known: {listed}.')


def _check_sizes(field: str, sizes: Any, count: int) -> None:
  listed = isinstance(sizes, tuple | list) and len(sizes) == count
  if not listed or not all(isinstance(x, int) and x > 0 for x in sizes):
    rule = 'a whole number' if count == 1 else f'{count} whole numbers'
    raise ValueError(f'{field}: {sizes!r} must be {rule} above 0.')


def _check_room(config: Any) -> None:
  """Refuses too little room: a step past the capacity reads NaN."""
  turns = 1 + 2 * config.repeats
  most = max(turns * config.calls, turns + cache_kinds.COMPARED)
  if config.room < most:
    raise ValueError(
      f'room={config.room} is less than the {most} tokens that '
      f'repeats={config.repeats} and calls={config.calls} may decode. Use '
      f'room={most}.'
    )
