"""Dense slots in stripes, one a device: where tokens go, how they are read."""

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny


def test_positions_go_round_the_stripes():
  kind = kvjax.Dense(stripes=4).bind(8)
  slots = kind.slot_of(jnp.arange(-1, 9, dtype=jnp.int32)[None])
  # Position -1 is no token: it goes beyond the store.
  np.testing.assert_array_equal(slots, [[8, 0, 2, 4, 6, 1, 3, 5, 7, 2 + 0]])


def test_every_stripe_has_a_slot_for_what_is_left_over():
  kind = kvjax.Dense(stripes=4).bind(9)
  assert kind.row_slots == 12 and kind.limit == 9
  slots = kind.slot_of(jnp.arange(9, dtype=jnp.int32)[None])
  assert len(set(np.asarray(slots)[0].tolist())) == 9


def test_a_kind_that_compares_all_slots_is_not_split():
  assert kvjax.Dense().split(4) == kvjax.Dense(stripes=4)
  assert kvjax.Ring(window=4).split(4) == kvjax.Ring(window=4)
  kind = kvjax.Bounded(budget=4)
  assert kind.split(1) is kind
  with pytest.raises(ValueError, match='Bounded compares the scores of all'):
    kind.split(2)


@pytest.mark.parametrize('block', [None, 3])
def test_one_device_reads_stripes(block):
  config, ids = tiny.decoder(), tiny.tokens(2, 10)
  params, found = tiny.params(config), []
  for stripes in (1, 4):
    kind = kvjax.Dense(stripes=stripes)
    cache = kvjax.init_cache(config, 2, 13, kinds=kind)
    logits, _ = kvjax.extend(
      config,
      params,
      cache,
      ids,
      options=kvjax.DecodeOptions(block=block),
    )
    found.append(np.asarray(logits))
  tiny.close(found[1], found[0])
