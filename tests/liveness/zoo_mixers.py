"""Convolutions, look-ahead, recurrences, missing masks: where Q lives."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name as name

from tests.liveness import zoo
from tests.liveness.zoo import INF, D, Entry, H, N, Program, weight

FULL = N * H * 4


def project(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  q, k, v = (
    jnp.einsum('TD,DNH->TNH', x, weight(D, N, H, seed=i)) for i in range(3)
  )
  return name(q, 'q'), name(k, 'k'), name(v, 'v')


def close(out: jax.Array) -> jax.Array:
  return out.reshape(out.shape[0], -1) @ weight(N * H, D)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array):
  scores = jnp.einsum('TNH,SNH->NTS', q, k)
  p = zoo.softmax_rows(scores, jnp.broadcast_to(mask, scores.shape))
  return close(jnp.einsum('NTS,SNE->TNE', p, v))


# --- Multi-token attention: a convolution of logits over six query rows ----


def mta(x: jax.Array) -> jax.Array:
  q, k, v = project(x)
  T = x.shape[0]
  mask = jnp.broadcast_to(zoo.causal(T), (N, T, T))
  scores = jnp.where(mask, jnp.einsum('TNH,SNH->NTS', q, k), 0.0)
  rows = jnp.pad(scores, ((0, 0), (5, 0), (0, 0)))
  scores = sum(0.5**i * rows[:, 5 - i : 5 - i + T] for i in range(6))
  return close(jnp.einsum('NTS,SNE->TNE', zoo.softmax_rows(scores, mask), v))


def mta_convolved(x: jax.Array) -> jax.Array:
  """The same with a convolution primitive, no names."""
  T = x.shape[0]
  q, k, v = jnp.split(x @ weight(D, 3 * N * H), 3, -1)
  q, k, v = (a.reshape(T, N, H) for a in (q, k, v))
  scores = jnp.einsum('TNH,SNH->NTS', q, k) * jnp.tril(
    jnp.ones((N, T, T), jnp.float32)
  )
  kernel = weight(1, 1, 6, 1)
  scores = jax.lax.conv_general_dilated(
    scores[:, None], kernel, (1, 1), ((5, 0), (0, 0))
  )[:, 0]
  mask = jnp.broadcast_to(zoo.causal(T), scores.shape)
  return close(jnp.einsum('NTS,SNE->TNE', zoo.softmax_rows(scores, mask), v))


# --- Short convolutions on q, k and v --------------------------------------


def conv_padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[T, C] with [4, C]: pads and adds shifted rows."""
  T = x.shape[0]
  rows = jnp.pad(x, ((3, 0), (0, 0)))
  taps = [rows[i : i + T] * kernel[i][None] for i in range(4)]
  return jax.nn.silu(taps[0] + taps[1] + taps[2] + taps[3])


def conv_joined(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Concatenates along time."""
  past = jnp.concatenate([jnp.zeros((3, x.shape[1]), x.dtype), x], 0)
  windows = jnp.stack([past[i : i + x.shape[0]] for i in range(4)], 1)
  return jax.nn.silu(jnp.einsum('TWC,WC->TC', windows, kernel))


def conv_primitive(x: jax.Array, kernel: jax.Array) -> jax.Array:
  out = jax.lax.conv_general_dilated(
    x[None],
    kernel[:, None, :],
    (1,),
    ((3, 0),),
    dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=x.shape[1],
  )
  return jax.nn.silu(out[0])


def short_conv(conv: Program, named: bool = True) -> Program:
  mark = name if named else (lambda a, _: a)

  def program(x: jax.Array) -> jax.Array:
    q, k, v = (
      mark(x @ weight(D, N * H, seed=i), n) for i, n in enumerate('qkv')
    )
    q, k, v = (conv(a, weight(4, N * H)) for a in (q, k, v))
    k, v = mark(k, 'conv_k'), mark(v, 'conv_v')
    q, k, v = (a.reshape(-1, N, H) for a in (q, k, v))
    return attend(q, k, v, zoo.causal(x.shape[0]))

  return program


# --- Look-ahead, encoders, a prefix, a layer without its mask --------------


def masked(mask: Program, named: bool = True) -> Program:
  def program(x: jax.Array) -> jax.Array:
    return attend(*project(x), mask(x.shape[0]))

  def plain(x: jax.Array) -> jax.Array:
    qkv = (x @ weight(D, 3 * N * H)).reshape(-1, 3, N, H)
    bias = jnp.where(mask(x.shape[0]), 0.0, -1e9)

    def head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
      return jax.nn.softmax(q @ k.T + bias, -1) @ v

    heads = jax.vmap(head, 1, 1)(qkv[:, 0], qkv[:, 1], qkv[:, 2])
    return close(heads)

  return program if named else plain


def ahead(r: int) -> Program:
  def mask(T: int) -> jax.Array:
    i = jnp.arange(T)
    return i[:, None] + r >= i[None, :]

  return mask


def prefix(p: int) -> Program:
  def mask(T: int) -> jax.Array:
    i = jnp.arange(T)
    return (i[:, None] >= i[None, :]) | (i[None, :] < p)

  return mask


def everyone(T: int) -> jax.Array:
  return jnp.ones((T, T), bool)


def three_layers(named: bool) -> Program:
  """Only the middle layer has lost its mask."""

  def program(x: jax.Array) -> jax.Array:
    for mask in (zoo.causal, everyone, zoo.causal):
      x = x + masked(mask, named)(x)
    return x

  return program


# --- Linear attention -----------------------------------------------------


def features(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  q, k, v = (x @ weight(D, H, seed=i) for i in range(3))
  return jax.nn.elu(q) + 1, jax.nn.elu(k) + 1, v


def linear_cumsum(x: jax.Array) -> jax.Array:
  q, k, v = features(x)
  states = name(jnp.cumsum(jnp.einsum('TH,TE->THE', k, v), 0), 'S')
  return jnp.einsum('TH,THE->TE', name(q, 'q'), states) @ weight(H, D)


def linear_scan(x: jax.Array) -> jax.Array:
  def step(state: jax.Array, row: tuple[jax.Array, ...]):
    q, k, v = row
    state = state + k[:, None] * v[None, :]
    return state, q @ state

  out = jax.lax.scan(step, jnp.zeros((H, H)), features(x))[1]
  return out @ weight(H, D)


def linear_loop(x: jax.Array) -> jax.Array:
  """A Python loop over tokens that writes rows."""
  q, k, v = features(x)
  state = jnp.zeros((H, H))
  out = jnp.zeros((x.shape[0], H))
  for t in range(x.shape[0]):
    state = state + jnp.outer(k[t], v[t])
    out = out.at[t].set(q[t] @ state)
  return out @ weight(H, D)


def decayed_scan(x: jax.Array) -> jax.Array:
  """A gate from data: S = a S + k v."""
  q, k, v = features(x)
  a = jax.nn.sigmoid(x @ weight(D, H))

  def step(state: jax.Array, row: tuple[jax.Array, ...]):
    q, k, v, a = row
    state = a[:, None] * state + k[:, None] * v[None, :]
    return state, state.T @ q

  return jax.lax.scan(step, jnp.zeros((H, H)), (q, k, v, a))[1]


# --- Other sums over the past ----------------------------------------------


def prefix_mean(x: jax.Array) -> jax.Array:
  count = jnp.arange(1, x.shape[0] + 1, dtype=jnp.float32)[:, None]
  return jnp.cumsum(x @ weight(D, H), 0) / count


def prefix_mean_scan(x: jax.Array) -> jax.Array:
  def step(carry, row):
    total, count = carry
    total, count = total + row, count + 1
    return (total, count), total / count

  start = jnp.zeros(H), jnp.zeros(())
  return jax.lax.scan(step, start, x @ weight(D, H))[1]


# --- Training, eviction statistics, tables that depend on the length -------


def training(named: bool) -> Program:
  forward = zoo.grouped(zoo.K) if named else zoo.repeated(zoo.K)

  def program(x: jax.Array) -> jax.Array:
    y, pull = jax.vjp(forward, x)
    return pull(y)[0]

  return program


def heavy_hitters(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """H2O: per key, the sum of the weights it has received, by cumsum."""
  q, k, v = project(x)
  scores = jnp.einsum('TNH,SNH->NTS', q, k)
  mask = jnp.broadcast_to(zoo.causal(x.shape[0]), scores.shape)
  p = zoo.softmax_rows(scores, mask)
  received = name(jnp.cumsum(p, 1), 'received')
  return close(jnp.einsum('NTS,SNE->TNE', p, v)), received


def heavy_hitters_scan(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  q, k, v = jnp.split((x @ weight(D, 3 * N * H)).reshape(-1, N, 3 * H), 3, -1)
  T = x.shape[0]

  def step(received: jax.Array, row):
    q, allowed = row
    s = jnp.einsum('NH,SNH->NS', q, k)
    p = zoo.softmax_rows(s, jnp.broadcast_to(allowed, s.shape))
    received = received + p
    return received, (jnp.einsum('NS,SNE->NE', p, v), received)

  start = jnp.zeros((N, T))
  _, (out, received) = jax.lax.scan(step, start, (q, zoo.causal(T)))
  return close(out), received.swapaxes(0, 1)


def length_dependent(x: jax.Array) -> jax.Array:
  """Dynamic NTK: the rotation's base grows with the length."""
  q, k, v = project(x)
  q, k = (zoo.rotate(a * (1 + x.shape[0] / 64)) for a in (q, k))
  return attend(q, k, v, zoo.causal(x.shape[0]))


def length_dependent_base(x: jax.Array) -> jax.Array:
  q, k, v = (
    a.reshape(-1, N, H) for a in jnp.split(x @ weight(D, 3 * N * H), 3, -1)
  )
  stretch = 8.0 / x.shape[0]
  at = jnp.arange(x.shape[0], dtype=jnp.float32) * stretch
  return attend(zoo.rotate(q, at), zoo.rotate(k, at), v, zoo.causal(x.shape[0]))


KV = ((FULL, INF), (FULL, INF))
STATE = ((H * H * 4, 1),)

ENTRIES: dict[str, Entry] = {
  'mta': Entry(
    {'named': mta, 'convolved': mta_convolved},
    ((FULL, 5), (FULL, INF), (FULL, INF)),
    frozenset('qkv'),
    (('q', 5), ('k', INF), ('v', INF)),
  ),
  'short_conv': Entry(
    {
      'named': short_conv(conv_padded),
      'named_joined': short_conv(conv_joined),
      'named_primitive': short_conv(conv_primitive),
      'padded': short_conv(conv_padded, False),
      'joined': short_conv(conv_joined, False),
      'primitive': short_conv(conv_primitive, False),
    },
    ((FULL, 3), (FULL, 3), (FULL, 3), (FULL, INF), (FULL, INF)),
    frozenset(('q', 'k', 'v', 'conv_k', 'conv_v')),
    (('q', 3), ('k', 3), ('v', 3), ('conv_k', INF)),
  ),
  'look_ahead': Entry(
    {'named': masked(ahead(2)), 'plain': masked(ahead(2), False)},
    ((FULL, 2), (FULL, INF), (FULL, INF)),
    frozenset('qkv'),
    (('q', 2), ('k', INF)),
    causal=False,
  ),
  'bidirectional': Entry(
    {'named': masked(everyone), 'plain': masked(everyone, False)},
    (),
    frozenset(),
    (('q', INF), ('k', INF), ('v', INF)),
    causal=False,
  ),
  'one_mask_missing': Entry(
    {'named': three_layers(True), 'plain': three_layers(False)},
    (),
    causal=False,
  ),
  'prefix': Entry(
    {'named': masked(prefix(5)), 'plain': masked(prefix(5), False)},
    KV,
    frozenset('kv'),
    (('q', 4), ('k', INF), ('v', INF)),
    causal=False,
  ),
  'linear': Entry(
    {
      'named': linear_cumsum,
      'scan': linear_scan,
      'loop': linear_loop,
      'decayed': decayed_scan,
    },
    STATE,
    frozenset('S'),
    (('S', 1), ('q', 0)),
  ),
  'prefix_mean': Entry(
    {'cumsum': prefix_mean, 'scan': prefix_mean_scan}, ((H * 4, 1),)
  ),
  'training': Entry(
    {'named': training(True), 'plain': training(False)},
    (),
    frozenset(),
    (('q', INF), ('k', INF), ('v', INF)),
    causal=False,
  ),
  'heavy_hitters': Entry(
    {'named': heavy_hitters, 'scan': heavy_hitters_scan},
    ((N * 4, 1), (FULL, INF), (FULL, INF)),
    frozenset(('k', 'v', 'received')),
    (('q', 0),),
  ),
  'length_dependent': Entry(
    {'named': length_dependent, 'plain': length_dependent_base},
    (),
    frozenset(),
    causal=False,
  ),
}
