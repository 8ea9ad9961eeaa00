"""Caches by name: how a command line says which kind and which codec.

  dense      int8      ring:window=64      sinks:sinks=4,window=60+int8
  paged:page=16      bounded:budget=64,score=heavy_hitters(recent=32)
  my_kinds:Strided(stride=3)+my_codecs:Log()
  paged:page=16+affine:bits=2      key=hadamard(affine(bits=4)),value=ggml(q4_0)

A kind, its fields after a colon, and a codec behind a plus. A codec alone
leaves every layer its own kind; `stream=codec` pairs are a codec a stream. A
kind, codec or score of another module is `module:Name(...)`; its arguments are
Python literals.
"""

import ast
import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from kvjax.caches.bounded import Bounded
from kvjax.caches.dense import Dense
from kvjax.caches.key_scores import CUR, KeyDiff, KeyNorm, LagKV, Random
from kvjax.caches.kind import Kind
from kvjax.caches.paged import Paged
from kvjax.caches.residual import Residual
from kvjax.caches.ring import Ring
from kvjax.caches.scores import (
  TOVA,
  ExpectedAttention,
  HeavyHitters,
  LastQuery,
  ObservedAttention,
  Recency,
  SnapKV,
)
from kvjax.caches.sinks import Sinks
from kvjax.streams.codecs import (
  GGML,
  KIVI,
  Affine,
  ByChannel,
  Centred,
  Codec,
  Codecs,
  Float8,
  Hadamard,
  Int8,
  LloydMax,
  Plain,
)

KINDS: dict[str, type[Kind]] = {
  'dense': Dense,
  'ring': Ring,
  'sinks': Sinks,
  'paged': Paged,
  'bounded': Bounded,
  'residual': Residual,
}
CODECS: dict[str, Any] = {
  'plain': Plain,
  'int8': Int8,
  'affine': Affine,
  'float8': Float8,
  'ggml': GGML,
  'lloydmax': LloydMax,
  'hadamard': Hadamard,
  'centred': Centred,
  'kivi': KIVI,
  'bychannel': ByChannel,
}
SCORES: dict[str, Any] = {
  'heavy_hitters': HeavyHitters,
  'last_query': LastQuery,
  'recency': Recency,
  'tova': TOVA,
  'observed_attention': ObservedAttention,
  'snapkv': SnapKV,
  'expected_attention': ExpectedAttention,
  'key_norm': KeyNorm,
  'key_diff': KeyDiff,
  'cur': CUR,
  'lagkv': LagKV,
  'random': Random,
}
DEFAULT = 'default'
BY_STREAM = re.compile(r'\w+=')
OUTSIDE = re.compile(r'([\w.]+):(\w+)\((.*)\)', re.DOTALL)


def parse_cache(text: str) -> tuple[Kind | None, Codecs]:
  """Returns the kind and the codec that a text names; None for the default.

  Raises:
    ValueError: a name or a field is unknown, or a value makes no sense; the
      message lists what is known.
  """
  kind: Kind | None = None
  codec: Codecs = None
  for part in map(str.strip, _split(text, '+')):
    name, _, fields = part.partition(':')
    if OUTSIDE.fullmatch(part):
      made = _make_outside(f'cache={text}', part, ('kind', 'codec'))
      if isinstance(made, Kind) and kind is None:
        kind = made
      elif not isinstance(made, Kind) and codec is None:
        codec = made
      else:
        raise ValueError(f'cache={text!r} names more than one kind and codec.')
    elif name in KINDS and kind is None:
      kind = _make(KINDS[name], name, fields)
    elif name in CODECS and codec is None:
      codec = _make(CODECS[name], name, fields)
    elif codec is None and BY_STREAM.match(part):
      pairs = [pair.partition('=') for pair in _split(part, ',')]
      codec = {x: _read_named(f'cache={text}', y, 'codec') for x, _, y in pairs}
    elif codec is None and name.partition('(')[0] in CODECS:
      codec = _read_named(f'cache={text}', part, 'codec')
    elif name != DEFAULT or fields:
      raise ValueError(
        f'cache={text!r}: {name!r} is no name of one kind and one codec; '
        f'kinds: {", ".join(KINDS)}; codecs: {", ".join(CODECS)}. Write '
        'kind:field=value,...+codec, module:Name(...), or default.'
      )
  return kind, codec


def check_choices(kinds: Any, codec: Any) -> None:
  """Raises ValueError where a kind or a codec is something else.

  For a name, as a command line gives it, the message says what it stands for.
  """
  each = kinds if isinstance(kinds, list | tuple) else [kinds]
  for text in (*each, codec):
    if isinstance(text, str):
      try:
        fix = _spell(*parse_cache(text))
      except ValueError as error:  # 'ring' alone names no window
        fix = 'a kvjax.Kind, such as kvjax.Ring(window=64). '
        fix += f'On a command line the name is refused as well: {error}'
      raise ValueError(
        f'{text!r} is a name, and no cache kind or codec. Give {fix}'
      )
  for kind in each:
    if kind is not None and not isinstance(kind, Kind):
      fix = f'codec={kind}' if type(kind) in CODECS.values() else 'a kvjax.Kind'
      raise ValueError(f'{kind!r} is no cache kind. Give {fix}.')
  for each in codec.values() if isinstance(codec, Mapping) else [codec]:
    is_codec = not isinstance(each, type) and hasattr(each, 'leaves')
    if each is not None and not is_codec:
      raise ValueError(f'codec={each!r} is no codec. Give kvjax.Int8(), say.')


def _spell(kind: Kind | None, codec: Codecs) -> str:
  choices = {'the kind ': kind, 'codec=': codec}
  parts = [f'{word}{x}' for word, x in choices.items() if x is not None]
  return (' and '.join(parts) or 'None') + '.'


def spell(codec: Any) -> str:
  """Returns a codec as a command line says it: 'hadamard(affine(bits=2))'."""
  words = []
  known = dataclasses.is_dataclass(codec)
  for field in dataclasses.fields(codec) if known else ():
    value = getattr(codec, field.name)
    text = spell(value) if dataclasses.is_dataclass(value) else str(value)
    if field.default is dataclasses.MISSING:
      words.append(text)
    elif value != field.default:
      words.append(f'{field.name}={text}')
  name = type(codec).__name__.lower()
  return f'{name}({",".join(words)})' if words else name


def _make(choice: Any, name: str, text: str) -> Any:
  hints = typing.get_type_hints(choice)
  known = {f.name: hints[f.name] for f in dataclasses.fields(choice) if f.init}
  known.pop('slots', None)  # the capacity decides
  known.pop('constant', None)  # an array, that `calibrate` measures
  values = {}
  for pair in filter(None, _split(text, ',')):
    field, _, value = pair.partition('=')
    if field not in known:
      more = ''
      if 'score' in known:
        more = '; those of a score: score=heavy_hitters(recent=8)'
      raise ValueError(
        f'cache={name}:{pair}: {name} has no field {field!r}; its fields: '
        f'{", ".join(known) or "none"}{more}.'
      )
    values[field] = _read(f'cache={name}:{pair}', known[field], value)
  try:
    return choice(**values)
  except TypeError as error:
    raise ValueError(f'cache={name}:{text}: {error}.') from error


def _read(place: str, hint: Any, text: str) -> Any:
  if isinstance(hint, types.UnionType):
    hint = typing.get_args(hint)[0]
  if hint is str:
    return text
  if hint in (Codec, Kind):
    return _read_named(place, text, 'codec' if hint is Codec else 'kind')
  if hint is bool:
    if text in ('true', 'false'):
      return text == 'true'
    raise ValueError(f'{place}: {text!r} must be true or false.')
  if hint is int:
    if text.removeprefix('-').isdecimal():
      return int(text)
    raise ValueError(f'{place}: {text!r} must be an integer.')
  if typing.get_origin(hint) is tuple:
    return _read_literal(place, text)
  return _read_named(place, text, 'score')


def _read_literal(place: str, text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError) as error:
    raise ValueError(f'{place}: {text!r} must be like (4, 32).') from error


def _read_named(place: str, text: str, wanted: str) -> Any:
  """Returns what `name`, `name(...)` or `module:Name(...)` makes.

  Args:
    place: of the text, for errors.
    text: the name and its fields.
    wanted: 'kind', 'codec' or 'score'.
  """
  text = text.strip()
  if OUTSIDE.fullmatch(text):
    return _make_outside(place, text, (wanted,))
  name, _, rest = text.partition('(')
  classes = {'kind': KINDS, 'codec': CODECS, 'score': SCORES}[wanted]
  if name not in classes:
    raise ValueError(
      f'{place}: {text!r} is none of {", ".join(classes)}. Another is '
      'module:Name(...).'
    )
  return _call(place, classes[name], f'({rest}' if rest else '()')


# What a class must have to be one of these. A name is read where something else
# was expected as well, so nothing else is ever called.
_HAS = {
  'kind': lambda found: issubclass(found, Kind),
  'codec': lambda found: hasattr(found, 'leaves'),
  'score': lambda found: hasattr(found, 'priority'),
}


def _make_outside(place: str, text: str, wanted: tuple[str, ...]) -> Any:
  """Returns what `module:Name(...)` makes, a kind, codec or score."""
  match = OUTSIDE.fullmatch(text)
  assert match is not None
  module, name, arguments = match.groups()
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, TypeError) as error:
    raise ValueError(f'{place}: {text} cannot be had: {error}.') from error
  is_wanted = isinstance(found, type) and any(_HAS[w](found) for w in wanted)
  if not is_wanted:
    raise ValueError(f'{place}: {module}:{name} is no {" or ".join(wanted)}.')
  return _call(place, found, f'({arguments})')


def _call(place: str, choice: Any, arguments: str) -> Any:
  """Returns `choice(...)`, of arguments that are Python literals."""
  try:
    call: Any = ast.parse(f'f{arguments}', mode='eval').body
    read = _value if choice in CODECS.values() else ast.literal_eval
    positional = [read(x) for x in call.args]
    named = {x.arg: read(x.value) for x in call.keywords}
  except (SyntaxError, ValueError, AttributeError) as error:
    raise ValueError(
      f'{place}: the arguments {arguments} must be Python literals, such as '
      '(window=3).'
    ) from error
  try:
    return choice(*positional, **named)
  except TypeError as error:
    raise ValueError(f'{place}: {error}.') from error


def _value(node: Any) -> Any:
  """Returns a literal, a codec by its name, or another word as it is."""
  word = ast.unparse(node)
  if word.partition('(')[0] in CODECS:
    return _read_named(f'codec={word}', word, 'codec')
  return word if isinstance(node, ast.Name) else ast.literal_eval(node)


def _split(text: str, mark: str) -> list[str]:
  """Returns the parts of a text between marks that no bracket encloses."""
  parts, depth = [''], 0
  for sign in text:
    depth += (sign in '([{') - (sign in ')]}')
    if sign == mark and not depth:
      parts.append('')
    else:
      parts[-1] += sign
  return parts
