"""Faults in how a token is stored."""

from tests.mutants.fault import Mutant

CODES: tuple[Mutant, ...] = (
  Mutant(
    'one_scale_for_all',
    'kvjax/streams/codecs/integers.py',
    'jnp.max(jnp.abs(x), axis=-1) / 127',
    'jnp.broadcast_to(jnp.max(jnp.abs(x)), x.shape[:-1]) / 127',
    'tests/streams/test_codecs.py',
  ),
  Mutant(
    'codes_cut_not_rounded',
    'kvjax/streams/codecs/integers.py',
    'jnp.round(x / scale',
    'jnp.trunc(x / scale',
    'tests/streams/test_codecs.py',
  ),
  Mutant(
    'nibbles_swapped',
    'kvjax/streams/stored.py',
    'return part * jnp.uint8(bits)',
    'return (shape[-2] - 1 - part) * jnp.uint8(bits)',
    'tests/streams/test_ggml.py',
  ),
  Mutant(
    'zero_forgotten',
    'kvjax/streams/stored.py',
    'return numbers + _by_element(self.zero, numbers.shape)',
    'return numbers',
    'tests/streams/test_integers.py',
  ),
  Mutant(
    'compressed_without_turning_back',
    'kvjax/decoding/compression.py',
    'return store.turn_back(streams), jnp',
    'return streams, jnp',
    'tests/decoding/test_compression.py',
  ),
  Mutant(
    'scale_of_the_neighbour_group',
    'kvjax/streams/stored.py',
    'jnp.repeat(numbers, size',
    'jnp.repeat(jnp.roll(numbers, 1, axis), size',
    'tests/streams/test_integers.py',
  ),
  Mutant(
    'scale_of_the_neighbour_tokens',
    'kvjax/streams/view.py',
    'slice_(start if n == 1 else start // n, size // n)',
    'slice_(start if n == 1 else jnp.maximum(start // n - 1, 0), size // n)',
    'tests/caches/test_residual.py::test_blocks_are_of_whole_groups',
  ),
  Mutant(
    'residual_flushed_early',
    'kvjax/streams/codecs/codec.py',
    'old = jnp.maximum(length - self.first - self.window, 0)',
    'old = jnp.maximum(length + 1 - self.first - self.window, 0)',
    'tests/caches/test_residual.py::test_codes_are_written_once',
  ),
  Mutant(
    'group_by_slot_not_position',
    'kvjax/caches/residual.py',
    'due=self.exact.recent(self.first + due)[:, None]',
    'due=jnp.broadcast_to(self.first + steps, due.shape)[:, None]',
    'tests/contract/test_every_codec.py::'
    'test_cached_matches_uncached_through_the_codec[kivi_paged]',
  ),
  Mutant(
    'highest_bit_forgotten',
    'kvjax/streams/stored.py',
    'unpack(self.plane, 1, 1) << low',
    'unpack(self.plane, 1, 1)',
    'tests/streams/test_lloyd_max.py',
  ),
  Mutant(
    'any_scale_is_read_in_place',
    'kvjax/streams/stored.py',
    'if not by_token or types',
    'if types',
    'tests/streams/test_stored.py',
  ),
  Mutant(
    'groups_of_tokens_read_as_groups_of_features',
    'kvjax/streams/stored.py',
    'x.dtype == jnp.float16 and x.shape[:-1] == self.codes.shape[:-1]',
    'x.dtype == jnp.float16',
    'tests/streams/test_stored.py',
  ),
  Mutant(
    'halves_rounded_to_even',
    'kvjax/streams/codecs/ggml.py',
    'jnp.floor(jnp.abs(x) + 0.5)',
    'jnp.round(jnp.abs(x))',
    'tests/streams/test_ggml.py',
  ),
  Mutant(
    'sign_of_the_largest',
    'kvjax/streams/codecs/ggml.py',
    '_largest(blocks) / -middle',
    '_largest(blocks) / middle',
    'tests/streams/test_ggml.py',
  ),
  Mutant(
    'eight_bit_floats_overflow',
    'kvjax/streams/codecs/floats.py',
    'jnp.clip(x, -most, most).astype(dtype)',
    'x.astype(dtype)',
    'tests/streams/test_codecs.py',
  ),
)

CODECS: tuple[Mutant, ...] = (
  Mutant(
    'output_not_turned_back',
    'kvjax/decoding/reading.py',
    'out = store.turn_back({scoring.value: out})[scoring.value]',
    'pass',
    'tests/contract/test_every_codec.py::test_a_turn_alone_changes_nothing[grouped]',
  ),
  Mutant(
    'expanded_streams_not_turned_back',
    'kvjax/decoding/reading.py',
    'form.expand(params, store.turn_back(x))',
    'form.expand(params, x)',
    'tests/contract/test_every_codec.py::test_a_turn_alone_changes_nothing[expanded]',
  ),
  Mutant(
    'constant_rotated_at_wrong_position',
    'kvjax/decoding/layer.py',
    'positions[:, 0], state.rotary_length',
    '0 * positions[:, 0], state.rotary_length',
    'tests/contract/test_every_codec.py::test_cached_matches_uncached_through_the_codec[centred_ring]',
  ),
  Mutant(
    'centre_forgotten_on_whole_tokens',
    'kvjax/decoding/layer.py',
    '_rotate(view, variant, entry, state) for view',
    'view if view.is_exact else _rotate(view, variant, entry, state) for view',
    'tests/contract/test_every_codec.py::test_cached_matches_uncached_through_the_codec[centred_ring]',
  ),
  Mutant(
    'constant_missing_from_what_a_score_sees',
    'kvjax/decoding/choosing.py',
    'self.store.restore(x, self.constant)',
    'self.store.restore(x, None)',
    'tests/decoding/test_calibration.py::test_scores_of_keys_see_them_whole',
  ),
  Mutant(
    'turned_streams_encoded_anew',
    'kvjax/decoding/layout.py',
    'return add_constant(self.turn_back(self.decode(streams)), constant)',
    'return add_constant(self.decode(streams), constant)',
    'tests/decoding/test_calibration.py::test_a_cache_is_stored_anew_less_a_constant',
  ),
  Mutant(
    'a_constant_of_the_first_row_for_all',
    'experiments/frontier/caches.py',
    "store['key'][row, :, early]",
    "store['key'][0, :, early]",
    'tests/experiments/test_frontier_experiment.py::'
    'test_a_constant_of_each_row_is_of_its_early_tokens',
  ),
  Mutant(
    'a_channel_has_the_zero_of_another',
    'kvjax/native/src/project_blocks.h',
    'zero[k] = zeros + channel * blocks;',
    'zero[k] = zeros + c * blocks;',
    'tests/native/test_projection.py::test_weights_of_four_bits',
  ),
)
