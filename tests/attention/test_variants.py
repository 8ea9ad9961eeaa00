"""Grouped and latent attention: two forms of one formula, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import rotary_table
from kvjax.streams.view import fresh_view
from tests.facts import tiny

WIDTH, TOKENS = 13, 5
LATENT = tiny.MLA
LATENTS = {
  'plain': LATENT,
  'query_rank': dataclasses.replace(LATENT, query_rank=6),
  'scaled': dataclasses.replace(LATENT, scale=0.37),
  'interleaved': dataclasses.replace(
    LATENT, rotary=kvjax.Rotary(4, interleaved=True)
  ),
}


def run(variant, params, x, name):
  """Attends from activations to their own streams."""
  at = jnp.broadcast_to(jnp.arange(TOKENS, dtype=jnp.int32), x.shape[:2])
  table = rotary_table(variant.rotary, at, 0)
  form = variant.form(TOKENS, name)
  streams = form.expand(params, variant.project_streams(params, x, table))
  out, lse = kvjax.attend(
    form.project_queries(params, x, table),
    at,
    (fresh_view(streams, at),),
    form.scoring(params, None),
  )
  return form.project_output(params, out.astype(x.dtype)), lse


@pytest.mark.parametrize('variant', LATENTS.values(), ids=LATENTS)
def test_absorbed_equals_expanded(variant, maybe_jit):
  params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
  x = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))
  call = lambda name: maybe_jit(lambda p, x: run(variant, p, x, name))(
    params, x
  )
  (y, lse), (y1, lse1) = call('absorbed'), call('expanded')
  np.testing.assert_allclose(y, y1, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    lse.reshape(2, 3, TOKENS),
    lse1.reshape(2, 3, TOKENS),
    rtol=1e-5,
    atol=1e-5,
  )


def test_expanded_is_the_paper():
  """`k = [c W_UK; k_R]`, `v = c W_UV`, head by head in NumPy."""
  params = LATENT.init(jax.random.key(0), WIDTH, jnp.float32)
  x = jax.random.normal(jax.random.key(1), (1, TOKENS, WIDTH))
  got, _ = run(LATENT, params, x, 'expanded')
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  h = np.asarray(x, np.float64)[0]
  down = h @ p['latent'].T
  c, r = down[:, :11], down[:, 11:]
  c = c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)
  turns = np.arange(TOKENS)[:, None] * 10000.0 ** (-np.arange(2) / 2)
  spin = lambda z: (z[:, :2] + 1j * z[:, 2:]) * np.exp(1j * turns)
  heads = []
  for n, q in enumerate(np.split(h @ p['query'].T, 3, axis=1)):
    k, v = c @ p['up_key'][n].T, c @ p['up_value'][n].T
    scores = q[:, :7] @ k.T + (spin(q[:, 7:]) @ spin(r).conj().T).real
    scores = np.where(np.tri(TOKENS) > 0, scores * 11**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    heads.append(weights / weights.sum(1, keepdims=True) @ v)
  want = np.concatenate(heads, axis=1) @ p['output'].T
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_the_cheaper_form():
  """At DeepSeek-V3's shapes the absorbed form pays below 171 new tokens."""
  big = kvjax.Latent(128, 512, 128, 128, kvjax.Rotary(64))
  assert not big.form(170).expands
  assert big.form(171).expands
  narrow = kvjax.Latent(2, 8, 8, 8, kvjax.Rotary(4))
  assert not narrow.form(10**6).expands
  with pytest.raises(ValueError, match="form='both' must be one of absorbed"):
    big.form(1, 'both')


def test_what_a_token_leaves():
  streams = LATENT.streams()
  assert {n: (s.heads, s.width, s.quantize) for n, s in streams.items()} == {
    'latent': (1, 11, True),
    'rotary': (1, 4, False),
  }


def test_refusals_of_latent():
  for name in ('num_heads', 'latent_width', 'key_width', 'value_width'):
    with pytest.raises(ValueError, match=f'{name}=0 must be at least 1'):
      dataclasses.replace(LATENT, **{name: 0})


@pytest.mark.parametrize(
  ('sizes', 'more', 'message'),
  [
    pytest.param(
      (6, 4, 5),
      {},
      'num_heads=6 is not a multiple.*num_kv_heads=4',
      id='multiple',
    ),
    pytest.param((0, 1, 5), {}, 'num_heads=0 must be at least 1', id='heads'),
    pytest.param((1, 1, 0), {}, 'key_width=0 must be at least 1', id='width'),
    pytest.param(
      (1, 1, 4),
      {'rotary': kvjax.Rotary(6)},
      'width=6 exceeds key_width=4',
      id='rotary',
    ),
    pytest.param((1, 1, 4), {'clip': 0.0}, 'clip=0.0 must exceed 0', id='clip'),
    pytest.param(
      (1, 1, 4),
      {'clip': float('nan')},
      'clip=nan must be a finite number, or None',
      id='clip=nan',
    ),
    pytest.param(
      (1, 1, 4),
      {'temperature': 0.1},
      'temperature=0.1 must be Temperature, or None',
      id='temperature',
    ),
    pytest.param(
      (1, 1, 4),
      {
        'qk_norm': kvjax.Norm(),
        'qk_norm_after': True,
        'qk_norm_joint': True,
      },
      'qk_norm_after=True with qk_norm_joint=True.*Choose one of the two',
      id='qk_norm_after',
    ),
  ],
)
def test_refusals_of_grouped(sizes, more, message):
  with pytest.raises(ValueError, match=message):
    kvjax.Grouped(*sizes, **more)


def test_queries_are_no_stream():
  assert set(kvjax.Grouped(4, 2, 5).streams()) == {'key', 'value'}


def test_norm_of_queries_and_keys():
  """Head by head, over all heads at once, and with a weight a head."""
  x = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))
  norm = kvjax.Norm(eps=0.0)
  for joint, each in ((False, False), (True, False), (False, True)):
    variant = kvjax.Grouped(
      6, 3, 7, qk_norm=norm, qk_norm_joint=joint, qk_norm_each=each
    )
    params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
    if each:
      weight = jax.random.normal(jax.random.key(2), (3, 7))
      params['key_norm'] = {'weight': weight}
    key = variant.project_streams(params, x, None)['key']
    raw = np.asarray(x @ params['key'].T)
    parts = raw[:, :, None] if joint else raw.reshape(2, TOKENS, 3, 7)
    want = parts / np.sqrt((parts**2).mean(-1, keepdims=True))
    if each:
      want = want * np.asarray(weight)
    want = np.moveaxis(want.reshape(2, TOKENS, 3, 7), 1, 2)
    np.testing.assert_allclose(key, want, rtol=1e-4, atol=1e-5)


def spin(x, at):
  """Rotates halves of `x [..., T, 4]` by angles of base 10000."""
  turned = (x[..., :2] + 1j * x[..., 2:]) * np.exp(
    1j * at[:, None] * 10000.0 ** (-np.arange(2) / 2)
  )
  return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize('after', [False, True])
def test_norm_before_or_after_rotation(after, maybe_jit):
  """With a weight the order counts, as features are mixed between."""
  weight = np.array([0.5, 1.0, 2.0, 3.0])
  variant = kvjax.Grouped(
    6,
    3,
    4,
    rotary=kvjax.Rotary(4),
    qk_norm=kvjax.Norm(eps=0.0),
    qk_norm_after=after,
  )
  params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
  params |= {
    f'{x}_norm': {'weight': jnp.asarray(weight)} for x in ('query', 'key')
  }
  x = jax.random.normal(jax.random.key(1), (1, TOKENS, WIDTH))
  at = np.arange(TOKENS)
  table = rotary_table(variant.rotary, jnp.asarray(at[None], jnp.int32), 0)
  found = {
    'query': maybe_jit(variant.project_queries)(params, x, table)['key'],
    'key': maybe_jit(variant.project_streams)(params, x, table)['key'],
  }
  for name, got in found.items():
    raw = np.asarray(x[0] @ params[name].T, np.float64).reshape(TOKENS, -1, 4)
    want = np.moveaxis(raw, 0, 1)
    for rotates in (after, not after):
      if rotates:
        want = spin(want, at)
      else:
        want = want / np.sqrt((want**2).mean(-1, keepdims=True)) * weight
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-5)


def test_clipped_on_both_sides_before_rotation(maybe_jit):
  variant = kvjax.Grouped(6, 3, 4, rotary=kvjax.Rotary(4), clip=0.5)
  params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
  x = jax.random.normal(jax.random.key(1), (1, TOKENS, WIDTH))
  at = np.arange(TOKENS)
  table = rotary_table(variant.rotary, jnp.asarray(at[None], jnp.int32), 0)
  found = maybe_jit(variant.project_streams)(params, x, table)
  found |= {
    'query': maybe_jit(variant.project_queries)(params, x, table)['key']
  }
  for name, got in found.items():
    raw = np.asarray(x[0] @ params[name].T, np.float64)
    assert raw.min() < -0.5 and raw.max() > 0.5
    want = np.minimum(np.maximum(raw, -0.5), 0.5).reshape(TOKENS, -1, 4)
    want = np.moveaxis(want, 0, 1)
    want = want if name == 'value' else spin(want, at)
    np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-5)


def test_joint_norm_comes_before_the_clip():
  norm = kvjax.Norm(eps=0.0)
  variant = kvjax.Grouped(6, 3, 7, qk_norm=norm, qk_norm_joint=True, clip=0.5)
  params = variant.init(jax.random.key(0), WIDTH, jnp.float32)
  x = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))
  raw = np.asarray(x @ params['key'].T)
  want = np.clip(raw / np.sqrt((raw**2).mean(-1, keepdims=True)), -0.5, 0.5)
  want = np.moveaxis(want.reshape(2, TOKENS, 3, 7), 1, 2)
  key = variant.project_streams(params, x, None)['key']
  np.testing.assert_allclose(key, want, atol=1e-5)
