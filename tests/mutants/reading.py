"""Faults in what is read: scores, positions, steps and draws."""

from tests.mutants.fault import faults

CORE = (
  faults(
    'attention/attend',
    'attention/merge_test.py::MergeTest',
    (
      'merge_without_the_maximum',
      'finite(jnp.max(jnp.stack(lses), axis=0))',
      'jnp.zeros_like(lses[0])',
    ),
    (
      'sink_logit_ignored',
      'out * jax.nn.sigmoid(lse - sinks)[..., None]',
      'out',
      'attention/merge_test.py::SinkLogitTest',
    ),
    (
      'sink_logit_not_in_lse',
      'jnp.logaddexp(lse, sinks)',
      'lse',
      'attention/merge_test.py::SinkLogitTest',
    ),
  )
  + faults(
    'kernels/blockwise',
    'attention/attend_test.py::AttendTest',
    (
      'blocks_not_rescaled',
      'out * keep[..., None] + _weigh',
      'out + _weigh',
    ),
    (
      'values_not_zeroed_in_empty_slots',
      'jnp.where(held, values, jnp.zeros_like(values))',
      'values',
    ),
    ('empty_row_divides_by_zero', 'jnp.where(empty, 1.0, total)', 'total'),
    (
      'softcap_after_bias',
      'scores = (scores.reshape(shape) + bias).reshape(scores.shape)',
      'scores = (scores.reshape(shape) + bias).reshape(scores.shape) if '
      'scoring.softcap is None else scoring.softcap * jnp.tanh((scores'
      '.reshape(shape) + bias).reshape(scores.shape) / scoring.softcap)',
    ),
    (
      'last_block_read_twice',
      'jnp.where(repeated[None, None, :], -1, keys)',
      'keys',
    ),
    (
      'last_block_not_read',
      '(jnp.minimum(filled, view.slots) + size - 1) // size',
      'jnp.minimum(filled, view.slots) // size',
    ),
    (
      'ordered_slots_stop_too_early',
      'jnp.max(positions) + 1)',
      'jnp.max(positions))',
    ),
    (
      'received_forgets_other_blocks',
      'total, old + weights, start',
      'total, weights, start',
      'attention/passes_test.py::WeightsTest',
    ),
  )
  + faults(
    'attention/cached',
    'facts/storage_facts_test.py',
    (
      'written_before_it_is_read',
      'views = kind.views(old, store, step.before)',
      'views = kind.views(book, store, step.before)',
    ),
    (
      'kind_does_not_narrow_the_mask',
      'seen = kind.narrow(scoring.visibility)',
      'seen = scoring.visibility',
      'facts/latent_facts_test.py',
    ),
  )
)


POSITIONS = (
  faults(
    'attention/rotary',
    'attention/rotary_test.py',
    (
      'rotated_the_wrong_way',
      '(a * cos - b * sin, a * sin + b * cos)',
      '(a * cos + b * sin, b * cos - a * sin)',
    ),
    ('yarn_ramp_reversed', 'plain * (1 - ramp)', 'plain * ramp'),
    (
      'longrope_off_by_one',
      'length > self.original',
      'length >= self.original',
    ),
  )
  + faults(
    'attention/bias',
    'attention/bias_test.py',
    (
      'alibi_backwards',
      '(keys - queries).astype',
      '(queries - keys).astype',
    ),
    ('buckets_off_by_one', 'past < exact, past', 'past <= exact, past'),
  )
  + faults(
    'attention/latent',
    'attention/variants_test.py::LatentTest',
    (
      'latent_wrong_scale',
      'width = self.key_width + self.rotary.width',
      'width = self.latent_width + self.rotary.width',
    ),
    (
      'absorbed_reads_no_rotary',
      "'rotary': checkpoint_name(turned, 'query_rotary')[:, None],",
      "'rotary': 0 * checkpoint_name(turned, 'query_rotary')[:, None],",
    ),
    (
      'latent_not_normalised',
      "latent = self.norm(params['latent_norm'], latent)[:, None]",
      'latent = latent[:, None]',
    ),
  )
)


STEPS = (
  faults(
    'decoding/advance',
    'facts/overflow_facts_test.py',
    (
      'rotary_at_the_retained_count',
      'at = positions if limit is None',
      'at = jnp.minimum(positions, 5) if limit is None',
      'facts/position_facts_test.py',
    ),
    (
      'overflow_not_sticky',
      'overflow=cache.overflow | ~fits',
      'overflow=~fits',
    ),
    ('too_long_a_chunk_written', 'held &= fits[:, None]', 'held &= True'),
    (
      'nan_row_not_marked',
      'jnp.where(lost, jnp.nan, x)',
      'x',
    ),
  )
  + faults(
    'models/forward',
    'decoding/steps_test.py::StepsTest',
    (
      'lengths_ignored',
      'return held & (steps < lengths[:, None])',
      'return held',
    ),
    (
      'left_padding_as_right',
      'steps = tokens.shape[1] - 1 - steps',
      'steps = steps + 0',
    ),
  )
  + faults(
    'decoding/steps',
    'decoding/steps_test.py::StepsTest',
    ('inactive_rows_advance', 'held &= active', 'held |= active'),
    (
      'undonated_leaf_shared',
      'jax.tree.map(jnp.copy, cache)',
      'cache',
      'models/encoder_decoder_test.py',
    ),
  )
  + faults(
    'models/experts',
    'models/experts_test.py',
    (
      'correction_joins_the_weights',
      'jnp.take_along_axis(scores, picked',
      'jnp.take_along_axis(choice, picked',
    ),
  )
)


SAMPLING = faults(
  'decoding/sampling',
  'decoding/sampling_test.py',
  (
    'top_p_off',
    'before < sampling.top_p',
    'before + probs < sampling.top_p',
  ),
  ('top_k_off', 'top_k)[0][:, -1:]', 'top_k)[0][:, :1]'),
  (
    'min_p_not_a_logarithm',
    'jnp.log(jnp.float32(sampling.min_p))',
    'jnp.float32(sampling.min_p)',
  ),
  ('temperature_ignored', 'logits / sampling.temperature', 'logits'),
  (
    'nan_row_gives_a_token',
    'jnp.where(lost, NO_TOKEN, tokens)',
    'tokens',
  ),
  (
    'row_seed_ignored',
    'jax.vmap(jax.random.key)(seeds)',
    'jax.vmap(jax.random.key)(0 * seeds)',
    'decoding/generate_test.py::SeedTest',
  ),
) + faults(
  'decoding/generate',
  'decoding/generate_test.py::StopTest',
  ('stop_token_ignored', 'alive &= token != stop', 'alive &= alive'),
  ('stop_length_off_by_one', 'count < run.limit', 'count <= run.limit'),
  (
    'room_off_by_one',
    'np.maximum(limit - 1, 0)',
    'limit',
    'decoding/generate_test.py::RoomTest',
  ),
  (
    'every_token_draws_with_one_key',
    'jax.vmap(jax.random.fold_in)(run.keys, run.count)',
    'run.keys',
    'decoding/generate_test.py::SeedTest',
  ),
)
