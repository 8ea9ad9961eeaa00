"""Every call on a mesh of four devices, of one process or several."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.sharding import Rules, host, of_params

ROWS, CAPACITY, TOKENS, NEW = 4, 16, 6, 5
LAYOUTS = {
  # Slots are split over processes, and kv heads within each.
  'slots': ((2, 2), Rules(heads=('inner', 'outer'), slots='outer')),
  'rows': ((2, 2), Rules(batch=('outer', 'inner'))),
  'experts': ((2, 2), Rules(batch='outer', experts=('outer', 'inner'))),
}


def make_config(experts: bool) -> kvjax.ModelConfig:
  mlp = kvjax.Experts(4, 2, 11) if experts else kvjax.MLP(12)
  attention = kvjax.Grouped(4, 2, 6, rotary=kvjax.Rotary(6))
  return kvjax.ModelConfig(23, 20, (kvjax.Layer(attention, mlp),))


def main(name: str, kind: str) -> dict[str, Any]:
  """Returns what each call gave, as one device gives it or an error."""
  shape, rules = LAYOUTS[name]
  mesh = jax.make_mesh(
    shape, ('outer', 'inner'), axis_types=2 * (AxisType.Auto,)
  )
  config = make_config(name == 'experts')
  kinds = kvjax.Paged(page=4) if kind == 'paged' else None
  params = kvjax.init_params(config, jax.random.key(0))
  split = jax.device_put(params, of_params(config, mesh, rules))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 23, (ROWS, TOKENS), np.int32)
  lengths = np.array([6, 3, 0, 5])
  results = []
  for weights, options in (
    (params, {}),
    (split, {'mesh': mesh, 'rules': rules}),
  ):
    cache = kvjax.init_cache(config, ROWS, CAPACITY, kinds=kinds, **options)
    results.append(call_all(config, weights, cache, tokens, lengths))
  alone, shared = results
  for key, value in alone.pop('close').items():
    np.testing.assert_allclose(shared['close'][key], value, atol=1e-5)
  del shared['close']
  # Of a mesh whose parts are elsewhere, `repr` says what this process knows.
  assert shared.pop('title').startswith(alone.pop('title'))
  assert alone == shared, (alone, shared)
  text = repr(kvjax.init_cache(config, ROWS, CAPACITY, mesh=mesh, rules=rules))
  assert 'on each of 4 devices' in text and '?' in text
  forward = kvjax.forward(config, split, tokens, rules=rules)
  expected = kvjax.forward(config, params, tokens)
  np.testing.assert_allclose(host(forward), expected, atol=1e-5)
  return shared


def call_all(config, params, cache, tokens, lengths) -> dict[str, Any]:
  """Returns ids and flags of every call; floats under 'close'."""
  logits, cache = kvjax.prefill(config, params, cache, tokens, lengths)
  close = {'prefill': host(logits)}
  # Row 2 has no token yet, so it samples none.
  greedy, after = kvjax.generate(
    config, params, cache, logits, NEW, donate=False
  )
  drawn, _, scores = kvjax.generate(
    config,
    params,
    cache,
    logits,
    NEW,
    temperature=0.7,
    seed=3,
    stop_tokens=(5,),
    log_probs=True,
    block=2,
    donate=False,
  )
  close['scores'] = host(scores)
  back = kvjax.rewind(after, lengths)
  again, back = kvjax.extend(config, params, back, tokens[:, :3])
  close['extend'] = host(again)
  step, back = kvjax.decode_step(
    config, params, back, tokens[:, 0], np.array([True, False, True, True])
  )
  close['step'] = host(step)[[0, 2, 3]]
  moved = kvjax.take(back, [3, 0, 0])
  moved = kvjax.concat([moved, kvjax.fork(moved)])
  kvjax.check(back)
  full = after
  for _ in range(CAPACITY - TOKENS - NEW + 2):  # one beyond the room of row 0
    last, full = kvjax.decode_step(
      config, params, full, jnp.asarray(tokens[:, 0])
    )
  close['full'] = host(last)
  try:
    kvjax.check(full)
    said = ''
  except ValueError as error:
    said = str(error)
  return {
    'close': close,
    'greedy': host(greedy).tolist(),
    'drawn': host(drawn).tolist(),
    'earliest': host(kvjax.earliest(back)).tolist(),
    'lengths': host(back.length).tolist(),
    'moved': host(moved.length).tolist(),
    'overflow': host(full.overflow).tolist(),
    'check': said,
    'title': repr(back).splitlines()[0],
  }
