"""The oracle: a decoder in NumPy float64, without a cache, row by row.

What a query sees follows from its position, the key's position, a window and
sinks; the survivors of a bounded kind from a run of its score rule below. No
array, field or function of the package is used, except the parameters and the
sizes in a config.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

TIE = 1e-4  # of a code: float32 and float64 could round apart below this
GAP = 1e-5  # of a score: float32 and float64 could rank apart below this

Cast = Callable[[np.ndarray], np.ndarray]


class NearTie(Exception):
  """These numbers cannot tell rounding from error: draw others."""


def exact(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float64)


def bfloat16(x: np.ndarray) -> np.ndarray:
  """Where a bfloat16 computation rounds."""
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Sees:
  """A mask from two positions; `renumber` as StreamingLLM."""

  window: int | None = None
  sinks: int = 0
  renumber: bool = False

  def __call__(self, scores: np.ndarray, heads: int) -> np.ndarray:
    """Returns booleans `[1, T, S]`: query by key."""
    i, j = np.indices(scores.shape[2:])
    near = j > i - (self.window or len(i))
    return ((j <= i) & (near | (j < self.sinks)))[None]


@dataclasses.dataclass(frozen=True)
class Evicts:
  """The survivors of a bounded kind: at most `budget - 1` after each piece.

  Attributes:
    budget: tokens a query sees, itself included.
    score: 'mass' received so far, of the 'last' piece, or 'recency'.
    fade: of 'mass' before a piece, what remains after it.
    recent: newest tokens that are never forgotten.
    piece: tokens between two evictions.
    call: tokens of a call; pieces start anew at each.
    apart: every head of the store has its own survivors.
  """

  budget: int
  score: str
  recent: int = 0
  fade: float = 1.0
  piece: int = 1
  call: int | None = None
  apart: bool = True
  renumber = False

  def __call__(self, scores: np.ndarray, heads: int) -> np.ndarray:
    """Returns booleans `[K, T, S]` for scores `[K, G, T, S]`."""
    count, _, length, _ = scores.shape
    seen = np.zeros((count, length, length), bool)
    groups = heads if self.apart else 1
    kept = [np.zeros(0, int) for _ in range(groups)]
    total = np.zeros((groups, length))
    start = 0
    while start < length:
      stop = self._stop(start, length)
      for t in range(start, stop):
        for head in range(count):
          seen[head, t, kept[head * groups // count]] = True
        seen[:, t, start : t + 1] = True
      part = softmax(scores[:, :, start:stop], seen[:, None, start:stop])
      received = part.sum(axis=(1, 2)).reshape(groups, -1, length).sum(axis=1)
      total = received + (self.fade * total if self.score == 'mass' else 0)
      kept = [
        self._survivors(np.append(old, np.arange(start, stop)), row, stop - 1)
        for old, row in zip(kept, total, strict=True)
      ]
      start = stop
    return seen

  def _stop(self, start, length):
    call = self.call or length
    return min(start + self.piece, (start // call + 1) * call, length)

  def _survivors(self, positions, total, now):
    surplus = len(positions) - (self.budget - 1)
    if surplus <= 0:
      return positions
    if self.score == 'recency':
      worth = positions.astype(float)
    else:
      safe = max(self.recent, 1) if self.score == 'last' else self.recent
      worth = np.where(now - positions < safe, np.inf, total[positions])
    order = np.argsort(worth)
    out, least = worth[order[surplus - 1]], worth[order[surplus]]
    if least - out < GAP * max(abs(out), 1e-3):
      raise NearTie(f'scores {out} and {least}')
    return np.sort(positions[order[surplus:]])


@dataclasses.dataclass(frozen=True)
class Given:
  """What was seen in another run."""

  seen: np.ndarray
  renumber = False

  def __call__(self, scores: np.ndarray, heads: int) -> np.ndarray:
    return self.seen


Rule = Sees | Evicts | Given


@dataclasses.dataclass(frozen=True)
class Oracle:
  """A model and what its layers see.

  Attributes:
    config, params: of the model under test.
    rules: one a layer.
    int8: streams pass through eight bits once.
    absorb: form of latent attention (it decides where bfloat16 rounds).
    cast: where a computation of few bits rounds.
    clear: refuse numbers that a code could round either way.
  """

  config: Any
  params: Any
  rules: tuple[Rule, ...]
  int8: bool = False
  absorb: bool = False
  cast: Cast = exact
  clear: bool = True

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """Returns logits `[B, T, V]` of tokens `[B, T]`."""
    return np.stack([self.row(row)[0] for row in np.asarray(tokens)])

  def row(self, tokens: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns logits `[T, V]` and what each layer sees."""
    p, cast, seen = self.params, self.cast, []
    x = f64(p['embedding'])[tokens]
    layers = zip(self.config.layers, p['layers'], self.rules, strict=True)
    for layer, q, rule in layers:
      h = norm(self.config.norm, q.get('attention_norm'), x, cast)
      y, sight = self._attention(layer.attention, q['attention'], h, rule)
      x, seen = cast(x + y), [*seen, sight]
      h = norm(self.config.norm, q.get('mlp_norm'), x, cast)
      x = cast(x + mlp(q.get('mlp'), h, cast))
    x = norm(self.config.norm, p['norm'], x, cast)
    return x @ f64(p['head']).T, seen

  def _attention(self, variant, p, x, rule):
    latent = hasattr(variant, 'latent_width')
    streams = (leave_latent if latent else leave_grouped)(
      variant, p, x, self.cast
    )
    heads = next(iter(streams.values())).shape[0]
    if self.int8:
      plain = ('rotary',) if latent else ()
      streams = {
        name: s if name in plain else eight_bits(s, self.clear)
        for name, s in streams.items()
      }
    ask = self._ask_latent if latent else self._ask_grouped
    at = np.arange(len(x))
    scores, value = ask(variant, p, x, at, streams)
    if rule.renumber:
      bent = np.minimum(at, rule.sinks + rule.window - 1)
      bent, _ = ask(variant, p, x, bent, streams)
      scores = np.where(at < rule.sinks, bent, scores)
    seen = rule(scores, heads)
    out = softmax(scores, seen[:, None]) @ value[:, None]
    out = self.cast(out)  # [K, G, T, E]
    if latent and self.absorb:
      out = self.cast(np.einsum('kntr,ner->nkte', out, f64(p['up_value'])))
    out = np.moveaxis(out, 2, 0).reshape(len(x), -1)
    return self.cast(out @ f64(p['output']).T), seen

  def _ask_grouped(self, v, p, x, at, streams):
    query = clip(v, self.cast(x @ f64(p['query']).T))
    query = query.reshape(len(x), v.num_kv_heads, -1, v.key_width)
    query = turn(v.rotary, np.moveaxis(query, 0, 2), at, self.cast)
    query = norm_heads(v, p, 'query', query, self.cast)
    if v.temperature is not None:  # of the token's place in its text
      steps = (np.arange(len(x)) + v.temperature.shift) // v.temperature.length
      factor = 1 + v.temperature.weight * np.log(1 + steps)
      query = self.cast(query * factor[:, None])
    scores = query @ np.swapaxes(streams['key'], 1, 2)[:, None]
    return scores * v.key_width**-0.5, streams['value']

  def _ask_latent(self, v, p, x, at, streams):
    cast = self.cast
    if v.query_rank is not None:
      x = norm(v.norm, p['query_norm'], cast(x @ f64(p['query_down']).T), cast)
    query = cast(x @ f64(p['query']).T).reshape(len(x), v.num_heads, -1)
    query = np.moveaxis(query, 0, 1)  # [N, T, H + P]
    plain, turned = np.split(query, [v.key_width], axis=-1)
    turned = turn(v.rotary, turned, at, cast)
    latent, rotated = streams['latent'][0], streams['rotary'][0]
    scale = query.shape[-1] ** -0.5
    position = turned @ rotated.T
    if self.absorb:
      plain = cast(np.einsum('nth,nhr->ntr', plain, f64(p['up_key'])))
      return (plain @ latent.T + position)[None] * scale, latent[None]
    key = cast(np.einsum('sr,nhr->nsh', latent, f64(p['up_key'])))
    value = cast(np.einsum('sr,ner->nse', latent, f64(p['up_value'])))
    scores = plain @ np.swapaxes(key, 1, 2) + position
    return scores[:, None] * scale, value


def leave_grouped(v, p, x, cast):
  """Returns key and value `[K, T, .]`."""
  key = clip(v, cast(x @ f64(p['key']).T)).reshape(len(x), v.num_kv_heads, -1)
  value = clip(v, cast(x @ f64(p['value']).T))
  value = value.reshape(len(x), v.num_kv_heads, -1)
  key = turn(v.rotary, np.moveaxis(key, 0, 1), np.arange(len(x)), cast)
  key = norm_heads(v, p, 'key', key, cast)
  return {'key': key, 'value': np.moveaxis(value, 0, 1)}


def clip(v, x):
  """Bounds absolute values by the variant's clip."""
  return x if v.clip is None else np.sign(x) * np.minimum(np.abs(x), v.clip)


def norm_heads(v, p, name, x, cast):
  """Normalises rotated heads `[..., T, H]`, if the variant does."""
  assert v.qk_norm is None or v.qk_norm_after, 'no oracle of another order'
  return x if v.qk_norm is None else norm(v.qk_norm, p[f'{name}_norm'], x, cast)


def leave_latent(v, p, x, cast):
  """Returns latent and rotated key `[1, T, .]`."""
  down = cast(x @ f64(p['latent']).T)
  latent, turned = np.split(down, [v.latent_width], axis=-1)
  latent = norm(v.norm, p['latent_norm'], latent, cast)
  turned = turn(v.rotary, turned[None], np.arange(len(x)), cast)
  return {'latent': latent[None], 'rotary': turned}


def turn(rotary, x, at, cast):
  """Rotates pairs of the leading features of `x [..., T, H]`."""
  if rotary is None:
    return x
  half = rotary.width // 2
  frequency = (rotary.base ** (-np.arange(half) / half)).astype(np.float32)
  angle = at[:, None] * frequency.astype(np.float64)
  y = x.copy()
  if rotary.interleaved:
    a, b = np.s_[..., 0 : 2 * half : 2], np.s_[..., 1 : 2 * half : 2]
  else:
    a, b = np.s_[..., :half], np.s_[..., half : 2 * half]
  y[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
  y[b] = x[a] * np.sin(angle) + x[b] * np.cos(angle)
  return cast(y)


def eight_bits(x, clear):
  """Returns `x [K, T, H]` after a round trip through codes and a scale."""
  scale = np.abs(x).max(axis=-1, keepdims=True) / 127
  codes = x / scale
  distance = np.abs(codes - np.floor(codes) - 0.5).min()
  if clear and distance < TIE:
    raise NearTie(f'code {distance} from a tie')
  return np.rint(codes) * scale


def norm(rule, p, x, cast):
  """RMSNorm; nothing where there is no weight and none is left out."""
  if not p and getattr(rule, 'weighted', True):
    return x
  mean = np.mean(x * x, axis=-1, keepdims=True)
  return cast(x / np.sqrt(mean + rule.eps) * f64(p.get('weight', 1.0)))


def mlp(p, x, cast):
  """A gated MLP; nothing without parameters."""
  if not p:
    return np.zeros_like(x)
  gate = cast(x @ f64(p['gate']).T)
  gate = cast(gate / (1 + np.exp(-gate)))
  up = cast(x @ f64(p['up']).T)
  return cast(cast(gate * up) @ f64(p['down']).T)


def softmax(scores, seen):
  scores = np.where(seen, scores, -np.inf)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def f64(x: Any) -> np.ndarray:
  return np.asarray(x).astype(np.float64)
