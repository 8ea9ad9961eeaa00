"""Faults in what a layer is made of: norms, MLPs, experts, projections."""

from tests.mutants.fault import Mutant

SCORING = 'tests/streams/test_scoring.py::'
VARIANTS = 'tests/attention/test_variants.py::'
EXPERTS = 'tests/models/test_experts.py::test_equals_loops'
MODELS: tuple[Mutant, ...] = (
  Mutant(
    'temperature_shift_forgotten',
    'kvjax/streams/scoring.py',
    '(jnp.maximum(positions, 0) + self.shift) // self.length',
    'jnp.maximum(positions, 0) // self.length',
    f'{SCORING}test_the_factor_by_hand',
  ),
  Mutant(
    'temperature_without_its_floor',
    'kvjax/streams/scoring.py',
    '(jnp.maximum(positions, 0) + self.shift) // self.length',
    '(jnp.maximum(positions, 0) + self.shift) / self.length',
    f'{SCORING}test_the_factor_by_hand',
  ),
  Mutant(
    'temperature_read_by_the_library_alone',
    'kvjax/attention/attend.py',
    'queries = scoring.scale_queries(queries, positions)',
    'pass',
    f'{SCORING}test_attention_reads_it',
  ),
  Mutant(
    'temperature_twice_in_a_cache',
    'kvjax/decoding/reading.py',
    'scoring = dataclasses.replace(scoring, temperature=None)',
    'pass',
    f'{SCORING}test_weights_of_a_cache_are_those_of_forward',
  ),
  Mutant(
    'norm_before_rotation_whatever_is_said',
    'kvjax/attention/grouped.py',
    'if by_heads and not self.qk_norm_after:',
    'if by_heads:',
    f'{VARIANTS}test_norm_before_or_after_rotation',
  ),
  Mutant(
    'clipped_above_alone',
    'kvjax/attention/grouped.py',
    'jnp.clip(x, -self.clip, self.clip)',
    'jnp.minimum(x, self.clip)',
    f'{VARIANTS}test_clipped_on_both_sides_before_rotation',
  ),
  Mutant(
    'values_not_clipped',
    'kvjax/attention/grouped.py',
    "value = self._clip(linear(params, 'value', x))",
    "value = linear(params, 'value', x)",
    f'{VARIANTS}test_clipped_on_both_sides_before_rotation',
  ),
  Mutant(
    'expert_scales_what_it_gives',
    'kvjax/models/experts.py',
    'if self.scale_input:',
    'if False:',
    f'{EXPERTS}[with_jit-llama4]',
  ),
  Mutant(
    'shared_gate_without_its_sigmoid',
    'kvjax/models/experts.py',
    "jax.nn.sigmoid(linear(params, 'shared_gate', x))",
    "linear(params, 'shared_gate', x)",
    f'{EXPERTS}[with_jit-qwen2_moe]',
  ),
  Mutant(
    'shared_gate_is_a_row_of_the_router',
    'kvjax/models/experts.py',
    "keys[5], 'shared_gate'",
    "keys[0], 'shared_gate'",
    'tests/models/test_experts.py::'
    'test_the_gate_of_the_shared_expert_is_drawn_by_itself',
  ),
  Mutant(
    'xielu_numbers_swapped',
    'kvjax/models/mlp.py',
    "rise=params['rise'], fall=params['fall']",
    "rise=params['fall'], fall=params['rise']",
    'tests/models/test_decoder.py::test_mlp[with_jit-xielu-True]',
  ),
  Mutant(
    'xielu_has_another_slope_at_0',
    'kvjax/models/mlp.py',
    '(jnp.expm1(low) - low)',
    '(jnp.expm1(low) - y)',
    'tests/models/test_decoder.py::test_xielu_where_exp_has_no_number',
  ),
  Mutant(
    'relu_is_not_squared',
    'kvjax/models/mlp.py',
    'jnp.square(jax.nn.relu(x))',
    'jax.nn.relu(x)',
    'tests/models/test_decoder.py::test_mlp[with_jit-relu2-True]',
  ),
)
