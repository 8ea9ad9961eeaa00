"""Faults of what the reference shows."""

from tests.mutants.fault import Mutant

REFERENCE: tuple[Mutant, ...] = (
  Mutant(
    'a_docstring_groups_parameters',
    'kvjax/decoding/steps.py',
    '    active: bool',
    '    token, active: bool',
    'tests/test_reference.py',
  ),
  Mutant(
    'a_parameter_is_not_described',
    'kvjax/memory/fitting.py',
    '    param_dtype: as in `plan`.',
    '',
    'tests/test_reference.py',
  ),
  Mutant(
    'a_public_name_is_on_no_page',
    'docs/reference/kvjax.md',
    '::: kvjax.fork',
    '',
    'tests/test_reference.py',
  ),
)
