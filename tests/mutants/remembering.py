"""Faults in what is kept, where it goes and which rows there are."""

from tests.mutants.fault import faults

MASKS = faults(
  'caches/visibility',
  'caches/visibility_test.py',
  ('window_off_by_one', 'keys < self.window', 'keys <= self.window'),
  ('causal_off_by_one', 'keys <= queries', 'keys < queries'),
  ('chunk_sees_earlier_chunks', 'self.chunk == keys', 'self.chunk >= keys'),
  ('sinks_not_seen', 'near | (keys < self.sink_tokens)', 'near'),
)


KINDS = (
  faults(
    'caches/kind',
    'caches/kinds_test.py::KindTest',
    ('clamp_on_overflow', "mode='drop'", "mode='clip'"),
    (
      'one_token_too_many',
      'length + count <= self.limit',
      'length + count <= self.limit + 1',
      'facts/overflow_facts_test.py',
    ),
    (
      'position_is_slot',
      'write_rows(book.positions, positions[:, None, :], slots)',
      'write_rows(book.positions, slots, slots)',
      'facts/storage_facts_test.py',
    ),
    (
      'rewind_keeps_positions',
      'jnp.where(held < after[:, None, None], held, EMPTY)',
      'held',
    ),
  )
  + faults(
    'caches/ring',
    'facts/storage_facts_test.py',
    (
      'ring_not_modulo',
      'positions % self.size',
      'jnp.minimum(positions, self.size - 1)',
    ),
    (
      'ring_forgets_too_early',
      'positions > last - self.size',
      'positions > last - self.size + 1',
    ),
    (
      'ring_chunk_off_by_one',
      'else self.slack + 1',
      'else self.slack + 2',
    ),
    (
      'ring_rewinds_too_far',
      'lowest + self.window - 1',
      'lowest + self.window - 2',
      'caches/kinds_test.py::KindTest',
    ),
  )
  + faults(
    'caches/sinks',
    'facts/storage_facts_test.py',
    (
      'sinks_not_kept',
      '(positions < self.sinks) | (positions > last - self.ring)',
      'positions > last - self.ring',
    ),
    (
      'sinks_overwritten',
      'self.sinks + (positions - self.sinks) % self.ring',
      'positions % self.size',
    ),
    (
      'renumber_limit_off_by_one',
      'self.sinks + self.window - 1',
      'self.sinks + self.window',
      'facts/position_facts_test.py',
    ),
  )
)


BOUNDED = faults(
  'caches/bounded',
  'caches/kinds_test.py::ScoreTest',
  (
    'budget_off_by_one',
    'count - (self.budget - 1)',
    'count - self.budget',
  ),
  (
    'reused_slot_keeps_its_score',
    'write_rows(book.total, jnp.zeros(slots.shape), slots)',
    'book.total',
  ),
) + faults(
  'caches/scores',
  'caches/kinds_test.py::ScoreTest',
  (
    'bounded_evicts_newest',
    'return -age.astype(jnp.float32)',
    'return age.astype(jnp.float32)',
  ),
  (
    'score_summed_over_batch',
    'return total + weights',
    'return total + weights.sum(axis=0, keepdims=True)',
  ),
  ('recent_off_by_one', 'age < self.recent', 'age <= self.recent'),
)


CODECS = faults(
  'caches/codecs',
  'caches/codecs_test.py',
  (
    'one_scale_for_all',
    'jnp.max(jnp.abs(x), axis=-1) / 127',
    'jnp.broadcast_to(jnp.max(jnp.abs(x)), x.shape[:-1]) / 127',
  ),
  ('codes_cut_not_rounded', 'jnp.round(', 'jnp.trunc('),
)


PAGES = faults(
  'caches/paged',
  'caches/paged_test.py',
  (
    'page_not_cleared_on_reuse',
    "book.positions.at[:, target].set(EMPTY, mode='drop'),",
    'book.positions,',
  ),
  (
    'shared_partial_page_not_copied',
    'copy = valid & (earlier | (readers > 0))',
    'copy = jnp.zeros_like(valid)',
  ),
  (
    'reference_not_released',
    "book.references.at[pages.reshape(-1)].add(-1, mode='drop')",
    'book.references',
  ),
  (
    'free_pages_promised_twice',
    '(jnp.cumsum(need) <= free)',
    '(need <= free)',
  ),
)


ALGEBRA = faults(
  'decoding/algebra',
  'facts/batch_facts_test.py::AlgebraFacts',
  (
    'scale_not_gathered',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'float32'):",
  ),
  (
    'take_not_gathering_positions',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'int32'):",
  ),
  (
    'flag_survives_rewind',
    'lost = ~(able & fits)',
    'lost = cache.overflow | ~(able & fits)',
    'decoding/algebra_test.py::RewindTest',
  ),
  (
    'earliest_of_the_wrong_layer',
    'found = jnp.maximum(found, kind.earliest',
    'found = jnp.minimum(found, kind.earliest',
    'decoding/algebra_test.py::RewindTest',
  ),
  (
    'fork_shares_its_leaves',
    'jax.tree.map(jnp.copy, run(cache, *args))',
    'run(cache, *args)',
    'decoding/donation_test.py',
  ),
) + faults(
  'decoding/cache',
  'decoding/donation_test.py',
  ('donated_check_missing', 'if length.is_deleted():', 'if False:'),
)
