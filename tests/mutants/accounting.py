"""Faults in what is derived, counted, watched and loaded."""

from tests.mutants.fault import Mutant

LIVENESS: tuple[Mutant, ...] = (
  Mutant(
    'the_future_reads_nothing',
    'kvjax/liveness/cut/min_cut.py',
    "(('out', a), 'future', maxflow.INFINITE)",
    "(('out', a), 'future', 0)",
    'tests/liveness/test_analysis.py',
  ),
  Mutant(
    'recomputation_is_free',
    'kvjax/liveness/cut/min_cut.py',
    'redo = flops * per_flop * _TIE',
    'redo = 0',
    'tests/liveness/test_analysis.py',
  ),
  Mutant(
    'what_is_redone_needs_nothing',
    'kvjax/liveness/cut/min_cut.py',
    "(('out', a), ('in', b), maxflow.INFINITE)",
    "(('out', a), ('in', b), 0)",
    'tests/liveness/test_frontier.py',
  ),
  Mutant(
    'scores_of_the_future_are_kept',
    'kvjax/liveness/cut/nodes.py',
    'if maker in ahead:',
    'if False:',
    'tests/liveness/test_zoo.py::test_verdict[queries_by_position_plain]',
  ),
  Mutant(
    'two_short_lengths_suffice',
    'kvjax/liveness/analysis.py',
    'if longest <= analysis.trace.length:',
    'if longest:',
    'tests/liveness/test_analysis.py::test_a_window_that_no_comparison_states_is_found',
  ),
  Mutant(
    'a_higher_maximum_rescales_nothing',
    'kvjax/liveness/recurrence/loops.py',
    'jnp.exp(before - safe)',
    'jnp.ones_like(safe)',
    'tests/liveness/test_derive.py::test_equals_the_uncached_program[fixed_queries_named]',
  ),
)

MEMORY: tuple[Mutant, ...] = (
  Mutant(
    'codes_counted_as_floats',
    'kvjax/memory/parts/cache_bytes.py',
    'return count * np.dtype(leaf.dtype).itemsize',
    'return count * 4',
    'tests/memory/test_plan.py',
  ),
  Mutant(
    'windows_grow_for_ever',
    'kvjax/memory/parts/cache_bytes.py',
    'if memory.kind.limit is None:',
    'if False:',
    'tests/memory/test_plan.py',
  ),
  Mutant(
    'later_loops_start_from_nothing',
    'kvjax/memory/temporaries/upper_bound.py',
    '[*ahead[index + 1 :], *late[: index + 1]]',
    'late[: index + 1]',
    'tests/memory/test_plan.py',
  ),
  Mutant(
    'a_copied_output_passes',
    'kvjax/memory/compiled/updates.py',
    "if row.kind not in ('temporary', 'output')",
    "if row.kind not in ('temporary',)",
    'tests/memory/test_in_place.py',
  ),
  Mutant(
    'a_sliced_layer_passes',
    'kvjax/memory/compiled/updates.py',
    "return 'slice' if layer or 2 * elements > size else None",
    "return 'slice' if 2 * elements > size else None",
    'tests/memory/test_in_place.py',
  ),
  Mutant(
    'exponent_of_the_first_doubling',
    'experiments/scaling/growth.py',
    'dict(sorted(points.items())[-2:])',
    'dict(sorted(points.items())[:2])',
    'tests/memory/test_roofline.py',
  ),
)

CHECKPOINTS: tuple[Mutant, ...] = (
  Mutant(
    'four_bits_without_a_sign',
    'kvjax/checkpoints/dequantize.py',
    'np.concatenate([FP4, -FP4])',
    'np.concatenate([FP4, FP4])',
    'tests/checkpoints/test_dequantize.py',
  ),
  Mutant(
    'older_rope_style_loses',
    'kvjax/checkpoints/rope.py',
    "settings.raw('rope_scaling') or settings.get('rope_parameters', {})",
    "settings.get('rope_parameters', {})",
    'tests/checkpoints/test_parity.py::test_uncached[llama3_old]',
  ),
  Mutant(
    'a_cache_of_other_params',
    'kvjax/checkpoints/prompt_cache/save.py',
    "metadata['params'], fingerprint(params))",
    "metadata['params'], metadata['params'])",
    'tests/facts/test_saved_facts.py',
  ),
  Mutant(
    'a_digest_of_names_alone',
    'kvjax/checkpoints/prompt_cache/digest.py',
    'state.update(array.reshape(-1).view(np.uint8).data)',
    'pass',
    'tests/faults/test_saved_caches.py',
  ),
  Mutant(
    'a_digest_without_metadata',
    'kvjax/checkpoints/prompt_cache/digest.py',
    'json.dumps([text, heads])',
    'json.dumps(heads)',
    'tests/faults/test_saved_caches.py::test_every_byte_counts',
  ),
  Mutant(
    'a_format_that_skips_the_digest',
    'kvjax/checkpoints/prompt_cache/metadata.py',
    'metadata.keys() != KEYS[form]',
    'not metadata.keys() & KEYS[form]',
    'tests/faults/test_saved_caches.py',
  ),
  Mutant(
    'books_of_a_file_unchecked',
    'kvjax/checkpoints/prompt_cache/save.py',
    'check_books(cache)',
    'pass',
    'tests/faults/test_saved_caches.py',
  ),
  Mutant(
    'a_layout_of_no_model',
    'kvjax/checkpoints/prompt_cache/metadata.py',
    'possible = _layout_of_choices(config, layout)',
    'possible = layout',
    'tests/faults/test_saved_caches.py',
  ),
  Mutant(
    'a_part_file_for_all_threads',
    'kvjax/checkpoints/prompt_cache/save.py',
    'part = pathlib.Path(name)',
    "part = path.with_name('.part'); os.unlink(name)",
    'tests/faults/test_saved_caches.py::test_threads_save_one_path',
  ),
  Mutant(
    'a_template_without_a_clock',
    'kvjax/text/rendering.py',
    'signal.setitimer(signal.ITIMER_PROF, seconds)',
    'pass',
    'tests/faults/test_chat.py::test_a_template_ends_in_one_line[a power]',
  ),
  Mutant(
    'a_template_that_reads_secrets',
    'kvjax/text/chat.py',
    'env={x: os.environ[x] for x in VARIABLES if x in os.environ}',
    'env=None',
    'tests/faults/test_chat.py::test_a_template_has_no_variables_of_the_environment',
  ),
  Mutant(
    'true_ends_a_text',
    'kvjax/text/tokenizer.py',
    'type(token) is not int or not',
    'not isinstance(token, int) or not',
    'tests/faults/test_chat.py::test_an_end_that_is_no_id',
  ),
)
