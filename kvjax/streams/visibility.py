"""Which keys a query sees: a rule over two absolute positions, no more."""

import dataclasses

import jax

from kvjax.arguments import check_fields


@dataclasses.dataclass(frozen=True)
class Visibility:
  """A mask as a rule. A key at position -1 (no token) is never seen.

  Attributes:
    causal: a query sees no later key.
    window: a query sees itself and the `window - 1` positions before it.
    chunk: a query sees only keys of the chunk of positions that it is in; the
      chunk's size (Llama 4's chunked local attention).
    sink_tokens: the first positions stay visible whatever the window
      (StreamingLLM, arXiv 2309.17453).
  """

  causal: bool = True
  window: int | None = None
  chunk: int | None = None
  sink_tokens: int = 0

  def __post_init__(self):
    check_fields(self, at_least={'window': 1, 'chunk': 1, 'sink_tokens': 0})

  @property
  def span(self) -> int | None:
    """Most keys that a query sees, sinks apart; None for no bound."""
    spans = [x for x in (self.window, self.chunk) if x is not None]
    return min(spans, default=None)

  def sees(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns booleans, broadcasting query against key positions."""
    seen = keys >= 0
    if self.causal:
      seen &= keys <= queries
    if self.window is not None:
      near = queries - keys < self.window
      seen &= near | (keys < self.sink_tokens) if self.sink_tokens else near
    if self.chunk is not None:
      seen &= queries // self.chunk == keys // self.chunk
    return seen

  def narrow(self, window: int, sink_tokens: int = 0) -> 'Visibility':
    """Returns this rule with at most that window, and sinks beyond it."""
    if self.window is not None and self.window <= window:
      window, sink_tokens = self.window, sink_tokens or self.sink_tokens
    return dataclasses.replace(self, window=window, sink_tokens=sink_tokens)
