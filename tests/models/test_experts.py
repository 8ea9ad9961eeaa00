"""Experts: the sparse visit is the dense sweep; routers in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax

WIDTH = 7
BASE = kvjax.Experts(num_experts=8, top=2, hidden=5)
ROUTERS = {
  'mixtral': BASE,
  'qwen': dataclasses.replace(BASE, renormalize=False),
  'gpt_oss': dataclasses.replace(
    BASE, score='top_softmax', bias=True, clamp=0.9
  ),
  'deepseek_v2': dataclasses.replace(
    BASE,
    renormalize=False,
    scale=2.5,
    groups=4,
    top_groups=2,
    shared=kvjax.MLP(3),
  ),
  'deepseek_v3': dataclasses.replace(
    BASE,
    score='sigmoid',
    correction=True,
    groups=4,
    top_groups=2,
    group_score='top2',
    scale=1.7,
  ),
  'qwen2_moe': dataclasses.replace(
    BASE, renormalize=False, shared=kvjax.MLP(3), shared_gate=True
  ),
  'llama4': dataclasses.replace(
    BASE,
    top=1,
    score='sigmoid',
    renormalize=False,
    scale_input=True,
    shared=kvjax.MLP(3),
  ),
  'two_scaled_inputs': dataclasses.replace(BASE, scale=1.7, scale_input=True),
}


def make(experts):
  """Returns parameters, none of which is zero."""
  params = experts.init(jax.random.key(0), WIDTH, jnp.float32)
  keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(params)))
  leaves, tree = jax.tree.flatten(params)
  noisy = [
    x + 0.3 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, noisy)


def sigmoid(x):
  """Returns the logistic function."""
  return 1 / (1 + np.exp(-x))


def route(e, p, row):
  """Returns `{expert: weight}` of one token, by the published rules."""
  logits = p['router'] @ row + (p['router_bias'] if e.bias else 0)
  probs = np.exp(logits - logits.max())
  scores = sigmoid(logits) if e.score == 'sigmoid' else probs / probs.sum()
  choice = scores + (p['correction'] if e.correction else 0)
  if e.groups > 1:
    groups = np.split(choice, e.groups)
    best = 2 if e.group_score == 'top2' else 1
    worth = [np.sort(g)[-best:].sum() for g in groups]
    for g in np.argsort(worth)[: e.groups - e.top_groups]:
      groups[g][:] = -np.inf
  picked = np.argsort(-choice)[: e.top]
  weights = scores[picked]
  if e.renormalize or e.score == 'top_softmax':
    weights = weights / weights.sum()
  return dict(zip(picked.tolist(), weights * e.scale, strict=True))


def expert(e, p, i, row):
  """Returns one expert of one token."""
  to = lambda n, x: p[n][i] @ x + (p[f'{n}_bias'][i] if e.bias else 0)
  gate, up = to('gate', row), to('up', row)
  if e.clamp is None:
    return to('down', gate * sigmoid(gate) * up)
  gate, up = np.minimum(gate, e.clamp), np.clip(up, -e.clamp, e.clamp)
  return to('down', gate * sigmoid(1.702 * gate) * (up + 1))


@pytest.mark.parametrize('e', ROUTERS.values(), ids=ROUTERS)
def test_equals_loops(e, maybe_jit):
  """Two tokens are visited one by one, eleven in a sweep: same numbers."""
  params = make(e)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = jax.random.normal(jax.random.key(1), (1, 11, WIDTH))
  want = []
  for row in np.asarray(x[0], np.float64):
    y = sum(
      expert(e, p, i, w * row) if e.scale_input else w * expert(e, p, i, row)
      for i, w in route(e, p, row).items()
    )
    if e.shared is not None:
      q = p['shared']
      gate = q['gate'] @ row
      shared = q['down'] @ (gate * sigmoid(gate) * (q['up'] @ row))
      weight = sigmoid(p['shared_gate'] @ row) if e.shared_gate else 1
      y = y + weight * shared
    want.append(y)
  run = maybe_jit(lambda p, x: e(p, x))
  for count in (2, 11):
    got = run(params, x[:, :count])[0]
    np.testing.assert_allclose(got, want[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('e', ROUTERS.values(), ids=ROUTERS)
def test_counts_are_those_of_init(e):
  assert e.num_params(WIDTH) == sum(x.size for x in jax.tree.leaves(make(e)))
  idle = e.num_experts - e.top
  one = 3 * WIDTH * e.hidden + e.bias * (2 * e.hidden + WIDTH)
  assert e.num_active(WIDTH) == e.num_params(WIDTH) - idle * one


def test_the_gate_of_the_shared_expert_is_drawn_by_itself():
  e = dataclasses.replace(BASE, shared=kvjax.MLP(3), shared_gate=True)
  params = e.init(jax.random.key(0), WIDTH, jnp.bfloat16)
  gate = params['shared_gate']
  assert gate.shape == (1, WIDTH) and gate.dtype == jnp.bfloat16
  for name in ('router', 'gate', 'up'):
    rows = params[name].reshape(-1, WIDTH)
    assert (rows != gate).any(axis=-1).all(), name


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    pytest.param({'top': 0}, 'top=0 of num_experts=8', id='top=0'),
    pytest.param(
      {'top': 9}, 'top=9 of num_experts=8: a token visits', id='top=9'
    ),
    pytest.param(
      {'groups': 3},
      'num_experts=8 is not a multiple of groups=3',
      id='groups=3',
    ),
    pytest.param(
      {'score': 'hard'},
      "Unknown score='hard'; known: 'softmax'",
      id='score=hard',
    ),
    pytest.param(
      {'activation': 'sin'},
      "Unknown activation='sin'; known: gelu",
      id='activation=sin',
    ),
    pytest.param(
      {'scale_input': True, 'bias': True},
      'scale_input=True with bias=True: a token of weight 0 .*Choose one',
      id='scale_input',
    ),
    pytest.param(
      {'shared_gate': True},
      'shared_gate=True needs a shared MLP: give shared=',
      id='shared_gate',
    ),
    pytest.param(
      {'shared_gate': 1, 'shared': kvjax.MLP(3)},
      'shared_gate=1 must be True or False',
      id='shared_gate=1',
    ),
  ],
)
def test_refusals(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(BASE, **change)
