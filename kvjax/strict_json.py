"""JSON from files that others wrote: parsed, or refused in one line.

`json.loads` keeps the last of two equal keys, so two readers may disagree about
what a file says. Deep nesting and very long integers make it raise errors that
name no file.
"""

import json
import os
from typing import Any

# transformers writes numbers that JSON has no spelling for as
# {"__float__": "Infinity"}.
FLOAT = '__float__'
NOT_FINITE = 'Infinity', '-Infinity', 'NaN'


def parse_json(data: bytes | str, source: str | os.PathLike[str]) -> Any:
  """Returns the value that a JSON text stands for.

  Args:
    data: the text; bytes are UTF-8.
    source: where the text is from, for the message.

  Raises:
    ValueError: the text is no JSON, is nested too deeply, holds an integer of
      thousands of digits, or gives an object the same key twice.
  """
  try:
    text = data if isinstance(data, str) else data.decode('utf-8')
    return json.loads(text, object_pairs_hook=_without_repeats)
  except RecursionError:
    raise ValueError(f'{source} is no JSON: nested too deeply.') from None
  except ValueError as error:  # of decoding, of syntax, of a key or an integer
    raise ValueError(f'{source} is no JSON: {error}.') from None


def parse_object(
  data: bytes | str, source: str | os.PathLike[str]
) -> dict[str, Any]:
  """Returns the keys and values of a JSON text that is one object.

  Args:
    data, source: as in `parse_json`.

  Raises:
    ValueError: as `parse_json`, or the value is no object.
  """
  value = parse_json(data, source)
  if not isinstance(value, dict):
    raise ValueError(f'{source} holds no JSON object.')
  return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> Any:
  values: dict[str, Any] = {}
  for key, value in pairs:
    if key in values:
      raise ValueError(f'the key {key!r} is there twice')
    values[key] = value
  if values.keys() == {FLOAT} and values[FLOAT] in NOT_FINITE:
    return float(values[FLOAT])
  return values
