"""Faults in what is kept, where it goes and which rows there are."""

from tests.mutants.fault import Mutant

MASKS: tuple[Mutant, ...] = (
  Mutant(
    'window_off_by_one',
    'kvjax/streams/visibility.py',
    'keys < self.window',
    'keys <= self.window',
    'tests/caches/test_visibility.py',
  ),
  Mutant(
    'causal_off_by_one',
    'kvjax/streams/visibility.py',
    'keys <= queries',
    'keys < queries',
    'tests/caches/test_visibility.py',
  ),
  Mutant(
    'chunk_sees_earlier_chunks',
    'kvjax/streams/visibility.py',
    'self.chunk == keys',
    'self.chunk >= keys',
    'tests/caches/test_visibility.py',
  ),
  Mutant(
    'sinks_not_seen',
    'kvjax/streams/visibility.py',
    'near | (keys < self.sink_tokens)',
    'near',
    'tests/caches/test_visibility.py',
  ),
)

KINDS: tuple[Mutant, ...] = (
  Mutant(
    'clamp_on_overflow',
    'kvjax/caches/slots.py',
    "mode='drop'",
    "mode='clip'",
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'one_token_too_many',
    'kvjax/decoding/advance.py',
    '(cache.length + count <= cache.layout.limit)',
    '(cache.length + count <= cache.layout.limit + 1)',
    'tests/facts/test_overflow_facts.py::test_decode_beyond_the_end[dense]',
  ),
  Mutant(
    'position_is_slot',
    'kvjax/caches/kind.py',
    'write_rows(book.positions, positions[:, None, :], slots)',
    'write_rows(book.positions, slots, slots)',
    'tests/facts/test_storage_facts.py::test_ring_cycles',
  ),
  Mutant(
    'rewind_keeps_positions',
    'kvjax/caches/kind.py',
    'stays = book.positions < after[:, None, None]',
    'stays = True',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'ring_not_modulo',
    'kvjax/caches/ring.py',
    'positions % self.size',
    'jnp.minimum(positions, self.size - 1)',
    'tests/facts/test_storage_facts.py::test_ring_cycles',
  ),
  Mutant(
    'ring_forgets_too_early',
    'kvjax/caches/ring.py',
    'positions > last - self.size',
    'positions > last - self.size + 1',
    'tests/facts/test_storage_facts.py::test_long_prompt_keeps_its_end',
  ),
  Mutant(
    'ring_chunk_off_by_one',
    'kvjax/caches/ring.py',
    'else self.slack + 1',
    'else self.slack + 2',
    'tests/facts/test_storage_facts.py::test_bursts_lose_no_key[2_slack_0]',
  ),
  Mutant(
    'ring_rewinds_too_far',
    'kvjax/caches/ring.py',
    'lowest + self.window - 1',
    'lowest + self.window - 2',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'sinks_not_kept',
    'kvjax/caches/sinks.py',
    '(positions < self.sinks) | (positions > last - self.ring)',
    'positions > last - self.ring',
    'tests/facts/test_storage_facts.py::test_sinks_stay_while_the_ring_cycles',
  ),
  Mutant(
    'sinks_overwritten',
    'kvjax/caches/sinks.py',
    'self.sinks + (positions - self.sinks) % self.ring',
    'positions % self.size',
    'tests/facts/test_storage_facts.py::test_sinks_stay_while_the_ring_cycles',
  ),
  Mutant(
    'renumber_limit_off_by_one',
    'kvjax/caches/sinks.py',
    'self.sinks + self.window - 1',
    'self.sinks + self.window',
    'tests/facts/test_position_facts.py::test_renumbered_sinks_use_the_models_own_table[paper]',
  ),
)

BOUNDED: tuple[Mutant, ...] = (
  Mutant(
    'new_tokens_are_forgotten_first',
    'kvjax/caches/bounded.py',
    'recent = self.budget // 2',
    'recent = 0',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'a_command_line_calls_anything',
    'kvjax/decoding/parse.py',
    'if not is_wanted:',
    'if False:',
    'tests/decoding/test_parse.py',
  ),
  Mutant(
    'budget_off_by_one',
    'kvjax/caches/bounded.py',
    'survivors = self.budget - 1',
    'survivors = self.budget',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'reused_slot_keeps_its_score',
    'kvjax/caches/bounded.py',
    'jnp.where(book.positions < before, total, 0.0)',
    'total',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'bounded_evicts_newest',
    'kvjax/caches/scores.py',
    'return -age.astype(jnp.float32)',
    'return age.astype(jnp.float32)',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'score_summed_over_batch',
    'kvjax/caches/scores.py',
    'return total + weights',
    'return total + weights.sum(axis=0, keepdims=True)',
    'tests/caches/test_kinds.py',
  ),
  Mutant(
    'recent_off_by_one',
    'kvjax/caches/scores.py',
    'age < (self.recent or 0)',
    'age <= (self.recent or 0)',
    'tests/caches/test_kinds.py',
  ),
)

CODECS: tuple[Mutant, ...] = (
  Mutant(
    'one_scale_for_all',
    'kvjax/streams/codecs.py',
    'jnp.max(jnp.abs(x), axis=-1) / 127',
    'jnp.broadcast_to(jnp.max(jnp.abs(x)), x.shape[:-1]) / 127',
    'tests/caches/test_codecs.py',
  ),
  Mutant(
    'codes_cut_not_rounded',
    'kvjax/streams/codecs.py',
    'jnp.round(',
    'jnp.trunc(',
    'tests/caches/test_codecs.py',
  ),
)

PAGES: tuple[Mutant, ...] = (
  Mutant(
    'freed_page_not_cleared',
    'kvjax/caches/paged.py',
    'in_use = (references > 0)[None, :, None]',
    'in_use = True',
    'tests/caches/test_paged.py',
  ),
  Mutant(
    'shared_partial_page_not_copied',
    'kvjax/caches/paged.py',
    'copy = is_partial & (earlier | (readers > 0))',
    'copy = is_partial & False',
    'tests/caches/test_paged.py',
  ),
  Mutant(
    'reference_not_released',
    'kvjax/caches/paged.py',
    'jnp.where(dropped, EMPTY, book.table)',
    'book.table',
    'tests/caches/test_paged.py',
  ),
  Mutant(
    'free_pages_promised_twice',
    'kvjax/caches/paged.py',
    'jnp.cumsum(need[order]) <= free',
    'need[order] <= free',
    'tests/caches/test_paged.py',
  ),
  Mutant(
    'page_of_none_holds_tokens',
    'kvjax/streams/view.py',
    'jnp.where(has_page, by_row(pool, table), -1)',
    'by_row(pool, table)',
    'tests/caches/test_paged.py',
  ),
)

ALGEBRA: tuple[Mutant, ...] = (
  Mutant(
    'scale_not_gathered',
    'kvjax/decoding/rows.py',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'float32'):",
    'tests/facts/test_batch_facts.py::test_reorder[gqa_int8]',
  ),
  Mutant(
    'take_not_gathering_positions',
    'kvjax/decoding/rows.py',
    "if 'batch' not in axes:",
    "if 'batch' not in axes or (x.ndim == 3 and x.dtype == 'int32'):",
    'tests/facts/test_batch_facts.py::test_reorder[gqa_int8]',
  ),
  Mutant(
    'flag_survives_rewind',
    'kvjax/decoding/rows.py',
    'lost = ~(able & fits)',
    'lost = cache.overflow | ~(able & fits)',
    'tests/decoding/test_rows.py::test_it_clears_the_flag',
  ),
  Mutant(
    'earliest_of_the_wrong_layer',
    'kvjax/decoding/rows.py',
    'shortest = jnp.maximum(shortest, kind.shortest_rewind',
    'shortest = jnp.minimum(shortest, kind.shortest_rewind',
    'tests/decoding/test_rows.py::test_every_layer_of_a_mixture',
  ),
  Mutant(
    'donated_check_missing',
    'kvjax/decoding/cache.py',
    'if is_spent(cache):',
    'if False:',
    'tests/decoding/test_donation.py::test_the_rest_says_so_too',
  ),
  Mutant(
    'unknown_token_raises_no_flag',
    'kvjax/decoding/checks.py',
    'overflow=cache.overflow | lost)',
    'overflow=cache.overflow)',
    'tests/faults/test_api.py',
  ),
  Mutant(
    'unknown_token_is_written',
    'kvjax/decoding/checks.py',
    'return cache, is_token & ~lost[:, None]',
    'return cache, is_token',
    'tests/faults/test_api.py',
  ),
  Mutant(
    'one_position_of_an_unknown_token',
    'kvjax/models/uncached.py',
    'unknown = jnp.cumsum(unknown, axis=1)',
    'unknown = unknown.astype(jnp.int32)',
    'tests/faults/test_api.py::test_forward_is_nan_from_an_unknown_id_on',
  ),
  Mutant(
    'ids_wrap',
    'kvjax/arguments.py',
    'return np.maximum(inside, -1).astype(np.int32)',
    'return inside.astype(np.int32)',
    'tests/faults/test_api.py::test_a_large_negative_id_is_no_token',
  ),
  Mutant(
    'infinite_logits_are_drawn',
    'kvjax/decoding/sampling.py',
    '~jnp.isfinite(jnp.max(logits, axis=-1))',
    'jnp.isnan(jnp.max(logits, axis=-1))',
    'tests/faults/test_api.py::test_a_row_without_a_distribution_gives_no_token',
  ),
  Mutant(
    'rows_that_do_not_exist',
    'kvjax/decoding/rows.py',
    'fits &= exists',
    'pass',
    'tests/faults/test_api.py::test_take_of_rows_that_do_not_exist_in_a_trace',
  ),
  Mutant(
    'params_of_any_shape',
    'kvjax/models/initialize.py',
    'if wanted.get(place) == given.get(place):',
    'if True:',
    'tests/faults/test_api.py::test_refused',
  ),
  Mutant(
    'a_cache_of_any_heads',
    'kvjax/decoding/checks.py',
    'if not _fits(spec[name], cache.stores[index][name]):',
    'if False:',
    'tests/faults/test_api.py::test_refused',
  ),
  Mutant(
    'a_ring_under_sinks',
    'kvjax/caches/ring.py',
    'if visibility.sink_tokens:',
    'if False:',
    'tests/faults/test_api.py::test_refused',
  ),
  Mutant(
    'fields_of_any_type',
    'kvjax/arguments.py',
    'if not any(_is(number, kind) for kind in accepted):',
    'if False:',
    'tests/faults/test_api.py::test_refused',
  ),
)
