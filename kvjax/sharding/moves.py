"""Whether a compiled step moves parts of its cache or its weights.

A step on several devices must exchange activations, which are small. Where XLA
finds no way to compute with a split array it gathers that array in every step:
the result is right, and nothing but time and memory shows it. The optimized
HLO says what is exchanged, how large it is, and in how many loops.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from kvjax.arguments import check_type, is_whole
from kvjax.decoding.cache import Cache
from kvjax.display import Display
from kvjax.sharding.hlo_text import KINDS, Collective, read_collectives

GROUPS = ('cache', 'params')
ENDS = ('embedding', 'logits')  # scopes of the two ends of a decoder
_CURE = 'give jax.jit(step).lower(...).compile().'


def collectives(compiled: jax.stages.Compiled | str) -> tuple[Collective, ...]:
  """Returns what a compiled program exchanges between devices, in its order.

  An asynchronous collective is one, at its start. A computation that is called
  in two places counts twice, and every branch of a conditional counts; a loop
  counts once, whatever its trip count.

  Args:
    compiled: `jax.jit(f).lower(...).compile()`, or the text of its HLO.

  Raises:
    ValueError: it is no compiled program, or its backend shows no HLO.
  """
  if isinstance(compiled, str):
    return tuple(read_collectives(compiled))
  check_type('compiled', compiled, jax.stages.Compiled, _CURE)
  text = compiled.as_text()
  if text is None:
    raise ValueError('compiled.as_text() is None: this backend shows no HLO.')
  return tuple(read_collectives(text))


def assert_moves(
  compiled: jax.stages.Compiled,
  *,
  no_gather_of: Sequence[str] = GROUPS,
  most: Mapping[str, int] | int | None = None,
) -> None:
  """Raises unless a compiled step moves activations only, and few of them.

  A collective moves an array if its result has at least half the bytes that
  one device stores of it. What counts as an array of the cache is each stream
  of `Cache.stores`, and of the params each weight matrix in their `layers`:
  no embedding, head, norm or bias. What the scopes `embedding` and `logits` of
  a decoder move is not compared with these. A leaf that every device stores
  whole cannot be gathered and is not looked at. Cache and params are anywhere
  among the arguments. Activations must be smaller than that, so compile a
  cache and a model that are not tiny.

  Args:
    compiled: `jax.jit(step).lower(...).compile()`.
    no_gather_of: which of 'cache' and 'params' must stay where they are.
    most: how many collectives of a kind there may be, by kind: `{'all-reduce':
      5}`; other kinds are not limited. A number limits all kinds together.

  Raises:
    AssertionError: shows a table of the collectives that are too large, or of
      a kind that there are too many of.
    ValueError: no argument is a cache, or params; or an option is unknown.
  """
  check_type('compiled', compiled, jax.stages.Compiled, _CURE)
  _check_options(no_gather_of, most)
  smallest = [_smallest(compiled, group) for group in no_gather_of]
  moves = collectives(compiled)
  # A step looks up its tokens and samples: the ends of a model move more.
  inner = [x for x in moves if x.scope.split('/')[0] not in ENDS]
  wrong: set[Collective] = set()
  notes = []
  for name, size in filter(None, smallest):
    if large := {x for x in inner if 2 * x.bytes >= size}:
      wrong |= large
      notes.append(
        f'A result of {max(x.bytes for x in large):,} bytes is at least half '
        f'of {name}, of which one device stores {size:,} bytes.'
      )
  for kind, limit in _limits(most).items():
    of_kind = [x for x in moves if kind in ('', x.kind)]
    if len(of_kind) > limit:
      wrong |= set(of_kind)
      name = kind or 'collectives of all kinds'
      notes.append(f'{name}: {len(of_kind)}, and at most {limit} are allowed.')
  if notes:
    raise AssertionError(_table([x for x in moves if x in wrong], notes))


def _check_options(no_gather_of: Sequence[str], most: Any) -> None:
  if isinstance(no_gather_of, str) or set(no_gather_of) - set(GROUPS):
    raise ValueError(
      f'no_gather_of={no_gather_of!r} must be a tuple of names of {GROUPS}.'
    )
  for kind, limit in _limits(most).items():
    if kind not in ('', *KINDS):
      raise ValueError(
        f'most limits the unknown kind {kind!r}; known: {", ".join(KINDS)}.'
      )
    if not is_whole(limit, low=0):
      raise ValueError(f'most={most!r} must be whole numbers from 0 up.')


def _limits(most: Mapping[str, int] | int | None) -> Mapping[str, int]:
  """Returns the limits by kind, '' for all kinds together."""
  if most is None:
    return {}
  return most if isinstance(most, Mapping) else {'': most}


def _smallest(
  compiled: jax.stages.Compiled, group: str
) -> tuple[str, int] | None:
  """Returns name and local bytes of the smallest split array of a group."""
  is_group = _is_cache if group == 'cache' else _is_params
  arguments = jax.tree.map(
    _local_shape, compiled.args_info, compiled.input_shardings
  )
  trees = jax.tree.leaves(arguments, is_leaf=is_group)
  trees = [tree for tree in trees if is_group(tree)]
  if not trees:
    fix = {
      'cache': 'give the step the Cache of init_cache',
      'params': "give it a mapping with the keys 'layers' and 'embedding'",
    }[group]
    raise ValueError(
      f'no argument of the program is {group}: {fix}, or leave {group!r} out '
      'of no_gather_of.'
    )
  arrays = _streams if group == 'cache' else _weights
  sizes = [
    (f'{group}{place}', max(map(_bytes, jax.tree.leaves(array))))
    for tree in trees
    for place, array in arrays(tree)
    if jax.tree.leaves(array)
  ]
  return min(sizes, key=lambda pair: pair[1], default=None)


def _is_cache(tree: Any) -> bool:
  return isinstance(tree, Cache)


def _is_params(tree: Any) -> bool:
  return isinstance(tree, Mapping) and {'layers', 'embedding'} <= tree.keys()


def _local_shape(info: Any, sharding: Any) -> jax.ShapeDtypeStruct | None:
  """Returns what one device stores of a leaf; None if that is the whole.

  None as well for a leaf that the program does not read: JAX gives it no
  sharding.
  """
  if sharding is None:
    return None
  local = sharding.shard_shape(info.shape)
  is_split = local != info.shape
  return jax.ShapeDtypeStruct(local, info.dtype) if is_split else None


def _streams(cache: Any) -> Iterator[tuple[str, Any]]:
  for layer, streams in enumerate(cache.stores):
    for name, stream in streams.items():  # codes and scales, where coded
      yield f'.stores[{layer}][{name!r}]', stream


def _weights(params: Any) -> Iterator[tuple[str, Any]]:
  """Yields weight matrices; a coded one is one array of codes and scales."""
  is_array = lambda x: not isinstance(x, Mapping | list | tuple)
  for path, weight in jax.tree.leaves_with_path(
    params['layers'], is_leaf=is_array
  ):
    name = jax.tree_util.keystr(path)
    is_matrix = any(len(x.shape) >= 2 for x in jax.tree.leaves(weight))
    if is_matrix and not re.search(r'bias|norm', name):
      yield f"['layers']{name}", weight


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _table(moves: Sequence[Collective], notes: Sequence[str]) -> str:
  """Returns a table in which equal collectives of all layers are one row."""
  alike = collections.Counter(
    x._replace(scope=re.sub(r'(layer_|\[)\d+', r'\1*', x.scope)) for x in moves
  )
  rows = [
    [f'{n} x', x.kind, f'{x.bytes:,}', x.shape, str(x.loops), x.scope]
    for x, n in sorted(alike.items(), key=lambda pair: -pair[0].bytes)
  ]
  columns = 'count', 'kind', 'bytes', 'result', 'loops', 'scope'
  left = 'kind', 'result', 'scope'
  title = 'The program moves more between devices than it may:'
  return Display(title, columns, rows, left, notes).text()
