"""Caches and params in programs that `jax.export` writes.

`import kvjax` registers every pytree class that the arguments and results of a
call have. What is static in a class is written as JSON, by name; nothing is
pickled.
"""

import contextlib
import json
from typing import Any

import jax

from kvjax.caches.bounded import BoundedBook
from kvjax.caches.kind import Book, Kind
from kvjax.caches.paged import PagedBook
from kvjax.caches.residual import Tiers
from kvjax.decoding.cache import Cache
from kvjax.decoding.layout import LayerStore, Layout
from kvjax.decoding.parse import CODECS, KINDS, SCORES
from kvjax.layers.int8_weight import CodedWeight
from kvjax.mesh.rules import Rules
from kvjax.models.encoder import Encoded

# What the static part of a cache is made of.
TYPES = (
  Layout,
  Rules,
  LayerStore,
  Kind,
  *KINDS.values(),
  *CODECS.values(),
  *SCORES.values(),
)


def register_pytrees() -> None:
  """Lets `jax.export` write programs of caches, int8 params and sources."""
  books = Book, BoundedBook, PagedBook, Tiers
  for cls in (Cache, *books, CodedWeight, Encoded):
    # JAX refuses a second registration, which `importlib.reload` would ask for.
    with contextlib.suppress(ValueError):
      jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=f'kvjax.{cls.__name__}',
        serialize_auxdata=write_static,
        deserialize_auxdata=read_static,
      )


def write_static(fields: tuple[Any, ...]) -> bytes:
  """Returns the static fields of a pytree class as JSON.

  Raises:
    ValueError: a kind, codec or score is not one of kvjax, so that
      `read_static` would not know it.
  """
  # Loaded here, and below, for those who export.
  from kvjax import frozen_json

  data = json.dumps(frozen_json.encode(fields)).encode()
  try:
    read_static(data)
  except ValueError as error:
    raise ValueError(
      f'jax.export cannot write this cache: {error} With a kind, codec or '
      'score of your own, export a function of jax.tree.leaves(cache).'
    ) from None
  return data


def read_static(data: bytes | bytearray) -> tuple[Any, ...]:
  """Returns the fields that `write_static` wrote."""
  from kvjax import frozen_json, strict_json

  written = strict_json.parse_json(bytes(data), 'An exported program')
  return frozen_json.decode(written, {cls.__name__: cls for cls in TYPES})
