"""Faults in what a program is found to remember, and what memory is planned."""

from tests.mutants.fault import Mutant

LIVENESS: tuple[Mutant, ...] = (
  Mutant(
    'a_cell_of_a_notebook_is_a_file',
    'kvjax/liveness/program/jaxprs.py',
    '      if cell:',
    '      if False:',
    'tests/liveness/test_analysis.py',
  ),
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
  Mutant(
    'places_are_of_one_machine',
    'kvjax/liveness/program/jaxprs.py',
    'str(path.relative_to(above)) if above else file',
    'file',
    'tests/experiments/test_liveness_examples.py::test_places_are_those_below_the_folder_that_python_imports_from',
  ),
)

MEMORY: tuple[Mutant, ...] = (
  Mutant(
    'a_budget_is_a_token_too_large',
    'kvjax/memory/fitting.py',
    'size(least - 1 + n) <= cache_bytes',
    'size(least - 2 + n) <= cache_bytes',
    'tests/memory/test_fit.py::test_a_budget_fills_its_bytes_within_one_token',
  ),
  Mutant(
    'sums_of_experts_are_made_after_attention',
    'kvjax/memory/temporaries/upper_bound.py',
    'reserved = [*self.reserved(), *self.expert_sums()]',
    'reserved = list(self.reserved())',
    'tests/memory/test_transients.py::'
    'test_a_plan_bounds_the_peak_of_a_recent_model[2-100]',
  ),
  Mutant(
    'variants_from_outside_have_values_of_no_width',
    'kvjax/memory/temporaries/attention_call.py',
    'next(filter(None, stated), widest)',
    'next(filter(None, stated), 1)',
    'tests/test_extend.py::test_a_variant_of_the_page_is_planned_and_fitted',
  ),
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
    'if kind.limit is None:',
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
    'logits_of_own_words_not_planned',
    'kvjax/memory/temporaries/upper_bound.py',
    "if rules is not None and rules['vocab']:",
    'if False:',
    'tests/memory/test_plan.py::test_one_of_eight_gpus_has_its_own_slots_and_words',
  ),
  Mutant(
    'split_slots_planned_whole',
    'kvjax/memory/temporaries/attention_call.py',
    "'slots' if stored and block == slots else ''",
    "''",
    'tests/memory/test_plan.py::test_one_of_eight_gpus_has_its_own_slots_and_words',
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
  Mutant(
    'an_all_reduce_passes_once',
    'experiments/scaling/communication.py',
    "passes = 2 if self.kind == 'all-reduce' else 1",
    'passes = 1',
    'tests/experiments/test_scaling.py',
  ),
  Mutant(
    'a_part_without_its_sum',
    'experiments/scaling/layouts.py',
    'rows * heads * (value + 1) * SUM',
    'rows * heads * value * SUM',
    'tests/experiments/test_scaling.py',
  ),
)

SHARDING: tuple[Mutant, ...] = (
  Mutant(
    'a_start_counts_its_operands',
    'kvjax/sharding/hlo_text.py',
    'return parts[1] if is_start and len(parts) > 1 else line.type',
    'return line.type',
    'tests/sharding/test_moves.py',
  ),
  Mutant(
    'a_loop_is_left_by_a_call',
    'kvjax/sharding/hlo_text.py',
    'yield from _walk(called, inside, computations)',
    "yield from _walk(called, int(line.opcode == 'while'), computations)",
    'tests/sharding/test_moves.py',
  ),
  Mutant(
    'an_end_counts_as_a_start',
    'kvjax/sharding/hlo_text.py',
    "line.opcode.endswith(('-update', '-done'))",
    "line.opcode.endswith('-none')",
    'tests/sharding/test_moves.py',
  ),
  Mutant(
    'scales_stand_for_a_stream',
    'kvjax/sharding/moves.py',
    'max(map(_bytes, jax.tree.leaves(array)))',
    'min(map(_bytes, jax.tree.leaves(array)))',
    'tests/sharding/test_moves.py',
  ),
  Mutant(
    'what_is_whole_could_be_gathered',
    'kvjax/sharding/moves.py',
    'is_split = local != info.shape',
    'is_split = True',
    'tests/sharding/test_moves.py',
  ),
  Mutant(
    'biases_stand_for_weights',
    'kvjax/sharding/moves.py',
    "if is_matrix and not re.search(r'bias|norm', name)",
    'if is_matrix',
    'tests/sharding/test_moves.py',
  ),
)
