"""Faults in what is derived, counted, watched and loaded."""

from tests.mutants.fault import Mutant, fault

LIVENESS: tuple[Mutant, ...] = (
  fault(
    'the_future_reads_nothing',
    'liveness/cut',
    "(('out', a), 'future', maxflow.INFINITE)",
    "(('out', a), 'future', 0)",
    'liveness/analysis_test.py',
  ),
  fault(
    'recomputation_is_free',
    'liveness/cut',
    'return _keep(graph, i, size * down), redo',
    'return _keep(graph, i, size * down), 0',
    'liveness/analysis_test.py',
  ),
  fault(
    'what_is_redone_needs_nothing',
    'liveness/budget',
    'missing = any(labels.get(j) == _ABSENT for j in self.made_of[i])',
    'missing = False',
    'liveness/budget_test.py',
  ),
  fault(
    'scores_of_the_future_are_kept',
    'liveness/tensors',
    'band |= ahead',
    'band |= False',
    'liveness/zoo_test.py::ZooTest::test_verdict_queries_by_position_plain',
  ),
  fault(
    'two_short_lengths_suffice',
    'liveness/analysis',
    'if length <= found.trace.length:',
    'if length:',
    'liveness/analysis_test.py::LengthTest',
  ),
  fault(
    'a_higher_maximum_rescales_nothing',
    'liveness/running',
    'jnp.exp(before - safe)',
    'jnp.ones_like(safe)',
    'liveness/derive_test.py::DeriveTest::test_equals_the_uncached_program_fixed_queries_named',
  ),
)

MEMORY: tuple[Mutant, ...] = (
  fault(
    'codes_counted_as_floats',
    'memory/cached',
    'return 8 * found.itemsize',
    'return 32',
    'memory/test_plan.py',
  ),
  fault(
    'windows_grow_for_ever',
    'memory/cached',
    'if memory.kind.limit is None:',
    'if False:',
    'memory/test_plan.py',
  ),
  fault(
    'later_loops_start_from_nothing',
    'memory/transient',
    '[*ahead[index + 1 :], *late[: index + 1]]',
    'late[: index + 1]',
    'memory/test_plan.py',
  ),
  fault(
    'a_copied_output_passes',
    'memory/in_place',
    "if row.kind not in ('temporary', 'output')",
    "if row.kind not in ('temporary',)",
    'memory/test_in_place.py',
  ),
  fault(
    'a_sliced_layer_passes',
    'memory/in_place',
    "return 'slice' if layer or 2 * held > size else None",
    "return 'slice' if 2 * held > size else None",
    'memory/test_in_place.py',
  ),
  fault(
    'exponent_of_the_first_doubling',
    'benchmark/growth',
    'dict(sorted(points.items())[-2:])',
    'dict(sorted(points.items())[:2])',
    'memory/test_roofline.py',
  ),
)

CHECKPOINTS: tuple[Mutant, ...] = (
  fault(
    'four_bits_without_a_sign',
    'checkpoints/quantized',
    'np.concatenate([FP4, -FP4])',
    'np.concatenate([FP4, FP4])',
    'checkpoints/test_quantized.py',
  ),
  fault(
    'older_rope_style_loses',
    'checkpoints/rope',
    "settings.raw('rope_scaling') or settings.get('rope_parameters', {})",
    "settings.get('rope_parameters', {})",
    'checkpoints/test_parity.py::test_uncached[llama3_old]',
  ),
  fault(
    'a_cache_of_other_params',
    'checkpoints/saved_cache',
    "_same(path, 'params', marks, fingerprint(params))",
    "_same(path, 'params', marks, marks)",
    'facts/saved_facts_test.py',
  ),
)
