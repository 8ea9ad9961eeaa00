"""One row a codec, and a model of one layer whose streams it stores."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.attention.rotary import rotary_table
from kvjax.streams.codecs import (
  add_constant,
  are_rotated,
  codecs_of,
  constants_of,
  tiering_of,
)
from tests.contract.oracle import NearTie
from tests.contract.table import VOCAB, WIDTH, Same, Zero

CONSTANT = np.random.default_rng(0).normal(scale=3.0, size=(1, 2, 64))
CODECS: dict[str, Any] = {
  'affine': kvjax.Affine(),
  'affine_2_bits': kvjax.Affine(bits=2, group=16),
  'affine_8_bits': kvjax.Affine(bits=8, group=1000),
  'affine_no_zero': kvjax.Affine(group=8, zero=False),
  'q8_0': kvjax.GGML('q8_0'),
  'q4_0': kvjax.GGML('q4_0'),
  'q4_1': kvjax.GGML('q4_1'),
  'q5_0': kvjax.GGML('q5_0'),
  'float8': kvjax.Float8(),
  'lloyd_max': kvjax.LloydMax(),
  'lloyd_max_3_bits': kvjax.LloydMax(bits=3),
  'hadamard': kvjax.Hadamard(kvjax.Affine()),
  'hadamard_block': kvjax.Hadamard(kvjax.LloydMax(bits=2), block=16),
  'centred': kvjax.Centred(kvjax.Hadamard(kvjax.Affine(bits=2)), CONSTANT),
  'by_stream': {
    'key': kvjax.Hadamard(kvjax.Affine(bits=8)),
    'value': kvjax.GGML('q4_0'),
  },
  'kivi': kvjax.KIVI(group=2, window=2),
}
GROUPED = kvjax.Grouped(
  4, 2, 64, value_width=32, rotary=kvjax.Rotary(6, base=100.0)
)
NARROW = kvjax.Grouped(
  4, 2, 8, value_width=4, rotary=kvjax.Rotary(6, base=100.0)
)
LATENT = kvjax.Latent(3, 32, 5, 7, rotary=kvjax.Rotary(8, base=100.0))


@dataclasses.dataclass(frozen=True)
class Stored:
  """A layer of attention alone, its streams stored by a codec."""

  codec: Any
  attention: Any = GROUPED
  kinds: kvjax.Kind = kvjax.Dense()
  form: str | None = None

  @functools.cached_property
  def config(self) -> kvjax.ModelConfig:
    layer = kvjax.Layer(self.attention, Zero())
    return kvjax.ModelConfig(VOCAB, WIDTH, (layer,), norm=Same())

  @property
  def is_grouped(self) -> bool:
    """Whether tokens are encoded in groups, that `rewind` cannot undo."""
    return tiering_of(self.codec).tokens > 1

  def init(self, batch: int, capacity: int = 16, **more: Any) -> kvjax.Cache:
    options = {'kinds': self.kinds, 'codec': self.codec, **more}
    return kvjax.init_cache(self.config, batch, capacity, **options)

  def extend(self, params, cache, tokens, lengths):
    # The library rounds queries of codes, so no tight tolerance suits it.
    options = kvjax.DecodeOptions(form=self.form, kernel='blockwise')
    tokens = jnp.asarray(tokens)
    return kvjax.extend(
      self.config, params, cache, tokens, lengths, options=options
    )

  def forward(self, params, tokens):
    """Returns logits uncached, every stream through its codec once."""
    return kvjax.forward(
      self.config,
      params,
      jnp.asarray(tokens),
      codec=self.codec,
      form=self.form or 'expanded',
    )

  def streams(self, params, tokens):
    """Returns what the codecs encode."""
    own = self.attention.streams()
    codecs = codecs_of(self.codec, own)
    positions = jnp.asarray(np.indices(tokens.shape, np.int32)[1])
    table = rotary_table(self.attention.rotary, positions, 0)
    streams = self.attention.project_streams(
      params['layers'][0]['attention'],
      params['embedding'][tokens],
      table if are_rotated(codecs) else None,
    )
    (constant,) = constants_of(self.codec, [own]) or (None,)
    row = None if constant is None else jnp.asarray(constant)[None]
    return add_constant(streams, row, -1)

  def assert_clear(self, params, tokens) -> None:
    """Raises NearTie where rounding of float32 could decide about a code."""
    rng = np.random.default_rng(0)
    streams = self.streams(params, tokens)
    group = tiering_of(self.codec).tokens
    for name, codec in codecs_of(self.codec, self.attention.streams()):
      whole = streams[name].shape[2] // group * group
      encode = jax.jit(
        lambda x, codec=codec, n=whole: codec.encode(x[:, :, :n], x.dtype)
      )
      codes = encode(streams[name])
      for _ in range(3):
        noise = rng.uniform(-1e-6, 1e-6, streams[name].shape)
        other = encode(streams[name] * jnp.asarray(1 + noise, jnp.float32))
        if not all(map(alike, *map(jax.tree.leaves, (codes, other)))):
          raise NearTie(f'{name} by {codec}')


def alike(one, other) -> bool:
  return one.dtype == jnp.float32 or bool((one == other).all())
