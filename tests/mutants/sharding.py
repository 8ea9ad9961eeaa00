"""Faults in what devices of a mesh write, read and merge."""

from tests.mutants.fault import Mutant

MERGES = 'tests/kernels/test_shards.py'
CONTRACTS = 'tests/sharding/test_contracts.py::test_contracts'
RULES = 'tests/mesh/test_rules.py'

MESH: tuple[Mutant, ...] = (
  Mutant(
    'shares_without_the_maximum',
    'kvjax/kernels/shards.py',
    'top = finite(jax.lax.pmax(lse, axes))',
    'top = finite(jax.lax.pmax(0 * lse, axes))',
    MERGES,
  ),
  Mutant(
    'normalised_outputs_are_summed',
    'kvjax/kernels/shards.py',
    'packed = jnp.concatenate([shares, weights[..., None]], axis=-1)',
    'packed = jnp.concatenate([out, weights[..., None]], axis=-1)',
    MERGES,
  ),
  Mutant(
    'a_device_that_saw_nothing_gives_nan',
    'kvjax/kernels/shards.py',
    'shares = jnp.where(saw_nothing, 0, weights[..., None] * out)',
    'shares = weights[..., None] * out',
    MERGES,
  ),
  Mutant(
    'slots_of_other_devices_are_written_here',
    'kvjax/caches/slots.py',
    'here = slots - first_index(parts, size)',
    'here = slots',
    f'{CONTRACTS}[dense]',
  ),
  Mutant(
    'outside_a_shard_is_counted_from_its_end',
    'kvjax/caches/slots.py',
    'outside = size + jnp.arange(slots.shape[2], dtype=jnp.int32)',
    'outside = -1 - jnp.arange(slots.shape[2], dtype=jnp.int32)',
    f'{CONTRACTS}[dense]',
  ),
  Mutant(
    'stripes_are_read_as_ordered',
    'kvjax/streams/view.py',
    'self, filled=self.slots, stripe_filled=filled, ordered=False',
    'self, filled=self.slots, stripe_filled=filled, ordered=True',
    'tests/caches/test_stripes.py',
  ),
  Mutant(
    'the_last_slot_of_a_stripe_is_not_read',
    'kvjax/caches/dense.py',
    'filled = -(-jnp.max(length) // self.stripes)',
    'filled = jnp.max(length) // self.stripes',
    'tests/caches/test_stripes.py',
  ),
  Mutant(
    'every_device_writes_the_first_part_of_a_page',
    'kvjax/caches/paged.py',
    'offsets -= first_index(axes[2], size)',
    'offsets -= 0',
    f'{CONTRACTS}[paged]',
  ),
  Mutant(
    'all_devices_have_the_bias_of_the_first_heads',
    'kvjax/kernels/shards.py',
    'of_all, first_index(split.kv_heads, kv_heads), kv_heads, axis=1',
    'of_all, 0, kv_heads, axis=1',
    f'{CONTRACTS}[features]',
  ),
  Mutant(
    'the_bias_of_an_expert_is_added_by_every_device',
    'kvjax/models/experts.py',
    'jnp.where(is_first, bias, 0)',
    'bias',
    f'{CONTRACTS}[features]',
  ),
  Mutant(
    'experts_are_not_localised',
    'kvjax/models/experts.py',
    'own = picked - first_index(experts, count)',
    'own = picked',
    'tests/sharding/test_cells.py::test_covering_cells[experts]',
  ),
  Mutant(
    'a_mesh_axis_after_one_that_does_not_divide',
    'kvjax/mesh/rules.py',
    '          break\n',
    '          continue\n',
    RULES,
  ),
  Mutant(
    'hidden_units_are_not_split_as_slots_are',
    'kvjax/mesh/rules.py',
    "without = self['slots'] if axis == 'kv_heads' else ()",
    "without = self['slots']",
    RULES,
  ),
  Mutant(
    'stripes_of_another_mesh_are_read',
    'kvjax/decoding/leaf_axes.py',
    'if kind.split(parts) != kind:',
    'if kind.split(parts) is None:',
    f'{CONTRACTS}[calls]',
  ),
)
