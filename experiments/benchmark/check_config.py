"""Refuses a wrong config of a benchmark before anything is measured."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from experiments.benchmark import cache_kinds
from experiments.benchmark.gpu import tile_sweep
from experiments.measuring import attention, forms, model
from experiments.measuring.variants import with_attention
from kvjax.decoding.parse import parse_cache
from kvjax.kernels import KERNELS

COUNTS = ('repeats', 'calls', 'together', 'bandwidth')
# Fields that are tuples of tuples of whole numbers, and the length of these.
SIZES = {
  'steps': 2,
  'generate': 3,
  'layer': 2,
  'products': 3,
  'caches.sizes': 2,
  'variants.sizes': 2,
  'attention.shapes': 3,
  'attention.cases': 2,
  'sweep.shapes': 2,
}


def check(config: Any, known: Iterable[str]) -> None:
  """Raises if a config names something unknown or impossible.

  Args:
    config: of the experiment.
    known: names of sections.

  Raises:
    ValueError: names the field, its value, the rule and the fix.
  """
  flat = dict(_flat(config.to_dict()))
  if not config.sections:
    raise ValueError('sections= is empty: name at least one.')
  _among('sections', config.sections, known)
  for name in COUNTS:
    if config[name] < 1:
      raise ValueError(f'{name}={config[name]} must be 1 or more.')
  _check_all_sizes(flat)
  _among('kernels', config.kernels, KERNELS)
  _among('prompt_kernels', config.prompt_kernels, forms.PROMPT_KERNELS)
  _among('generate_kernels', config.generate_kernels, (None, *KERNELS))
  _among('attention.dtypes', config.attention.dtypes, attention.TOLERANCE)
  _among('sweep.axes', flat.get('sweep.axes', ()), tile_sweep.AXES)
  for name in ('forms', 'checks.forms'):
    _among(name, filter(None, flat.get(name, ())), forms.FORMS)
  for text in flat.get('caches.names', ()):
    parse_cache(text)
  _check_models(config, flat)
  _check_room(config)


def _flat(
  fields: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  for name, value in fields.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def _among(field: str, names: Iterable[Any], known: Iterable[Any]) -> None:
  for name in names:
    if name not in known:
      names = ', '.join(map(str, known))
      raise ValueError(f'{field}: {name!r} is unknown; known: {names}.')


def _check_all_sizes(flat: Mapping[str, Any]) -> None:
  for name, count in SIZES.items():
    for sizes in flat.get(name, ()):
      _check_sizes(name, sizes, count)
  for name in ('prompts', 'overhead'):
    for count in flat.get(name, ()):
      _check_sizes(name, [count], 1)
  for case in flat.get('latent', ()):
    if not isinstance(case, tuple):
      _check_sizes('latent', case, 6)
    _check_sizes('latent', case[:-1], 6)
    _among('latent', case[-1:], model.TOLERANCE)


def _check_sizes(field: str, sizes: Any, count: int) -> None:
  listed = isinstance(sizes, tuple | list) and len(sizes) == count
  if not listed or not all(isinstance(x, int) and x > 0 for x in sizes):
    rule = 'a whole number' if count == 1 else f'{count} whole numbers'
    raise ValueError(f'{field}: {sizes!r} must be {rule} above 0.')


def _check_models(config: Any, flat: Mapping[str, Any]) -> None:
  for name in config.models:
    if f'{name}.layers' not in flat:
      raise ValueError(f'models: {name!r} is no model of this config.')
    _among(f'{name}.dtype', [config[name].dtype], model.TOLERANCE)
    model.describe(config[name])
  for name in flat.get('variants.names', ()):
    with_attention(model.describe(config[config.models[0]]), name)


def _check_room(config: Any) -> None:
  """Refuses too little room: a step past the capacity reads NaN."""
  turns = 1 + 2 * config.repeats
  most = max(turns * config.calls, turns + cache_kinds.FURTHER)
  if config.room < most:
    raise ValueError(
      f'room={config.room} is less than the {most} tokens that '
      f'repeats={config.repeats} and calls={config.calls} may decode. Use '
      f'room={most}.'
    )
