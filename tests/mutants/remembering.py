"""Faults in what is kept, where it goes and which rows there are."""

from tests.mutants.fault import Mutant, fault

MASKS: tuple[Mutant, ...] = (
  fault(
    'window_off_by_one',
    'caches/visibility',
    'keys < self.window',
    'keys <= self.window',
    'caches/visibility_test.py',
  ),
  fault(
    'causal_off_by_one',
    'caches/visibility',
    'keys <= queries',
    'keys < queries',
    'caches/visibility_test.py',
  ),
  fault(
    'chunk_sees_earlier_chunks',
    'caches/visibility',
    'self.chunk == keys',
    'self.chunk >= keys',
    'caches/visibility_test.py',
  ),
  fault(
    'sinks_not_seen',
    'caches/visibility',
    'near | (keys < self.sink_tokens)',
    'near',
    'caches/visibility_test.py',
  ),
)

KINDS: tuple[Mutant, ...] = (
  fault(
    'clamp_on_overflow',
    'caches/kind',
    "mode='drop'",
    "mode='clip'",
    'caches/kinds_test.py::KindTest',
  ),
  fault(
    'one_token_too_many',
    'decoding/advance',
    '(cache.length + count <= cache.layout.limit)',
    '(cache.length + count <= cache.layout.limit + 1)',
    'facts/overflow_facts_test.py::OverflowFacts::test_decode_beyond_the_end_dense',
  ),
  fault(
    'position_is_slot',
    'caches/kind',
    'write_rows(book.positions, positions[:, None, :], slots)',
    'write_rows(book.positions, slots, slots)',
    'facts/storage_facts_test.py::StorageFacts::test_ring_cycles',
  ),
  fault(
    'rewind_keeps_positions',
    'caches/kind',
    'jnp.where(held < after[:, None, None], held, EMPTY)',
    'held',
    'caches/kinds_test.py::KindTest',
  ),
  fault(
    'ring_not_modulo',
    'caches/ring',
    'positions % self.size',
    'jnp.minimum(positions, self.size - 1)',
    'facts/storage_facts_test.py::StorageFacts::test_ring_cycles',
  ),
  fault(
    'ring_forgets_too_early',
    'caches/ring',
    'positions > last - self.size',
    'positions > last - self.size + 1',
    'facts/storage_facts_test.py::StorageFacts::test_long_prompt_keeps_its_end',
  ),
  fault(
    'ring_chunk_off_by_one',
    'caches/ring',
    'else self.slack + 1',
    'else self.slack + 2',
    'facts/storage_facts_test.py::StorageFacts::test_bursts_lose_no_key_2_slack_0',
  ),
  fault(
    'ring_rewinds_too_far',
    'caches/ring',
    'lowest + self.window - 1',
    'lowest + self.window - 2',
    'caches/kinds_test.py::KindTest',
  ),
  fault(
    'sinks_not_kept',
    'caches/sinks',
    '(positions < self.sinks) | (positions > last - self.ring)',
    'positions > last - self.ring',
    'facts/storage_facts_test.py::StorageFacts::test_sinks_stay_while_the_ring_cycles',
  ),
  fault(
    'sinks_overwritten',
    'caches/sinks',
    'self.sinks + (positions - self.sinks) % self.ring',
    'positions % self.size',
    'facts/storage_facts_test.py::StorageFacts::test_sinks_stay_while_the_ring_cycles',
  ),
  fault(
    'renumber_limit_off_by_one',
    'caches/sinks',
    'self.sinks + self.window - 1',
    'self.sinks + self.window',
    'facts/position_facts_test.py::PositionFacts::test_renumbered_sinks_use_the_models_own_table_paper',
  ),
)

BOUNDED: tuple[Mutant, ...] = (
  fault(
    'budget_off_by_one',
    'caches/bounded',
    'survivors = self.budget - 1',
    'survivors = self.budget',
    'caches/kinds_test.py::ScoreTest',
  ),
  fault(
    'reused_slot_keeps_its_score',
    'caches/bounded',
    'jnp.where(book.positions < before, total, 0.0)',
    'total',
    'caches/kinds_test.py::ScoreTest',
  ),
  fault(
    'bounded_evicts_newest',
    'caches/scores',
    'return -age.astype(jnp.float32)',
    'return age.astype(jnp.float32)',
    'caches/kinds_test.py::ScoreTest',
  ),
  fault(
    'score_summed_over_batch',
    'caches/scores',
    'return total + weights',
    'return total + weights.sum(axis=0, keepdims=True)',
    'caches/kinds_test.py::ScoreTest',
  ),
  fault(
    'recent_off_by_one',
    'caches/scores',
    'age < self.recent',
    'age <= self.recent',
    'caches/kinds_test.py::ScoreTest',
  ),
)

CODECS: tuple[Mutant, ...] = (
  fault(
    'one_scale_for_all',
    'caches/codecs',
    'jnp.max(jnp.abs(x), axis=-1) / 127',
    'jnp.broadcast_to(jnp.max(jnp.abs(x)), x.shape[:-1]) / 127',
    'caches/codecs_test.py',
  ),
  fault(
    'codes_cut_not_rounded',
    'caches/codecs',
    'jnp.round(',
    'jnp.trunc(',
    'caches/codecs_test.py',
  ),
)

PAGES: tuple[Mutant, ...] = (
  fault(
    'freed_page_not_cleared',
    'caches/paged',
    'held = jnp.where((references > 0)[None, :, None], positions, EMPTY)',
    'held = positions',
    'caches/paged_test.py',
  ),
  fault(
    'shared_partial_page_not_copied',
    'caches/paged',
    'copy = valid & (earlier | (readers > 0))',
    'copy = jnp.zeros_like(valid)',
    'caches/paged_test.py',
  ),
  fault(
    'reference_not_released',
    'caches/paged',
    'jnp.where(dropped, EMPTY, book.table)',
    'book.table',
    'caches/paged_test.py',
  ),
  fault(
    'free_pages_promised_twice',
    'caches/paged',
    'jnp.cumsum(need[order]) <= free',
    'need[order] <= free',
    'caches/paged_test.py',
  ),
  fault(
    'page_of_none_holds_tokens',
    'caches/view',
    'jnp.where(there, by_row(pool, table), -1)',
    'by_row(pool, table)',
    'caches/paged_test.py',
  ),
)

ALGEBRA: tuple[Mutant, ...] = (
  fault(
    'scale_not_gathered',
    'decoding/algebra',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'float32'):",
    'facts/batch_facts_test.py::AlgebraFacts::test_reorder_gqa_int8',
  ),
  fault(
    'take_not_gathering_positions',
    'decoding/algebra',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'int32'):",
    'facts/batch_facts_test.py::AlgebraFacts::test_reorder_gqa_int8',
  ),
  fault(
    'flag_survives_rewind',
    'decoding/algebra',
    'lost = ~(able & fits)',
    'lost = cache.overflow | ~(able & fits)',
    'decoding/algebra_test.py::RewindTest::test_it_clears_the_flag',
  ),
  fault(
    'earliest_of_the_wrong_layer',
    'decoding/algebra',
    'found = jnp.maximum(found, kind.earliest',
    'found = jnp.minimum(found, kind.earliest',
    'decoding/algebra_test.py::RewindTest::test_every_layer_of_a_mixture',
  ),
  fault(
    'donated_check_missing',
    'decoding/cache',
    'if length.is_deleted():',
    'if False:',
    'decoding/donation_test.py::DonationTest::test_the_rest_says_so_too',
  ),
)
