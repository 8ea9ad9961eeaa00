"""What stands between braces in a template: `{seconds / tokens:ms}`.

An expression is a path into a record, `seconds` or `ratios[torch sdpa]`; the
quotient of two paths, `bytes / seconds`; or a statistic of either over the
records of a group, `median bits`. After a colon stands a format: a unit (`ms`
for three digits, `ms .2f` for two decimals), a word of `FORMATS`, or one of
Python's, as `.2f`. What a record lacks is shown as nothing.
"""

import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from experiments.reporting.blocks import cell

UNITS = {
  'ms': 1e3,
  'us': 1e6,
  'MB': 1e-6,
  'GB': 1e-9,
  'GB/s': 1e-9,
  'TB/s': 1e-12,
  'GFLOP/s': 1e-9,
}
STATISTICS: dict[str, Callable[[list[float]], float]] = {
  'min': min,
  'max': max,
  'median': statistics.median,
  'spread': lambda values: (max(values) - min(values)) / 2,
}


def fill(text: str, row: Mapping[str, Any]) -> str:
  """Returns text with the expressions between its braces replaced."""

  def show(place: re.Match[str]) -> str:
    expression, style = place.groups()
    return format_value(evaluate(expression, row), style)

  return re.sub(r'\{([^:}]+):?([^}]*)\}', show, text)


def evaluate(expression: str, row: Mapping[str, Any]) -> Any:
  """Returns the value of an expression; None where the row lacks a part.

  Raises:
    KeyError: no record of the selection has the field.
  """
  statistic, _, rest = expression.partition(' ')
  if statistic in STATISTICS:
    values = [evaluate(rest, member) for member in row['members']]
    present = [value for value in values if value is not None]
    return STATISTICS[statistic](present)
  path, _, divisor_path = expression.partition(' / ')
  value = _follow(path, row)
  if not divisor_path:
    return value
  divisor = _follow(divisor_path, row)
  return None if value is None or divisor is None else value / divisor


def _follow(path: str, row: Mapping[str, Any]) -> Any:
  """Returns what stands at `field[key][key]` of a row, None if nothing does."""
  field, *keys = re.findall(r'[^\[\]]+', path)
  value = row[field]
  for key in keys:
    if isinstance(value, list):
      value = value[int(key)]
    elif value is not None:
      value = value.get(key)
  return value


def format_value(value: Any, style: str = '') -> str:
  """Returns a value as text; style is what stands after the colon."""
  if value is None:
    return ''
  unit, _, digits = style.partition(' ')
  if unit in UNITS:
    scaled = UNITS[unit] * value
    return format(scaled, digits) if digits else _significant(scaled)
  if style in FORMATS:
    return FORMATS[style](value)
  return format(value, style)


def _significant(value: float) -> str:
  """Returns a number to three digits, larger ones as integers."""
  digits = sum(value < bound for bound in (1, 10, 100))
  return f'{value:,.{digits}f}'


def _plain(value: Any) -> str:
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, Mapping):
    return ', '.join(f'{name} {item}' for name, item in value.items())
  if isinstance(value, list):
    return ', '.join(map(cell, value))
  return cell(value)


def _faster(times: float) -> str:
  """Returns a ratio in words.

  Args:
    times: the time of the other over the time of the row; exactly 1 where the
      row is compared with itself, which is not shown.
  """
  if times == 1:
    return ''
  ratio = max(times, 1 / times)
  digits = 2 if ratio < 10 else 1
  return f'{ratio:.{digits}f}x {"faster" if times > 1 else "slower"}'


def _than_fastest(ratios: Mapping[str, float]) -> str:
  """Returns how a row compares with the fastest of those in its race."""
  if not ratios:
    return ''
  peer = min(ratios, key=ratios.__getitem__)
  return f'{_faster(ratios[peer])} than {peer}'


FORMATS: dict[str, Callable[[Any], str]] = {
  '': _plain,
  'faster': _faster,
  'than fastest': _than_fastest,
  'length': lambda items: str(len(items)),
  'upper': str.upper,
}
