"""How tests compile: quickly, and as users do where programs are judged.

Most of the suite's time would be XLA's. At LLVM's level 0, with the emitters
that JAX 0.10 still has next to the newer ones, programs compile in a fifth of
the time (JAX 0.12: half); what they compute is as true. LLVM's level changes no
buffer and no fusion, but the emitters do, so tests that read programs call
`as_users_do`, or ask for the fixture of that name where the package compiles.
To run all tests on what users run: XLA_FLAGS=' ' make test.
"""

import importlib.metadata
from typing import Any

import jax

_EMITTERS = 'xla_cpu_use_fusion_emitters'
_COMPILE = jax.stages.Lowered.compile


def _has_choice_of_emitters() -> bool:
  major, minor = importlib.metadata.version('jaxlib').split('.')[:2]
  return (int(major), int(minor)) < (0, 11)


def quick_flags() -> str:
  """Returns XLA_FLAGS for programs of which only the results count."""
  flags = ['xla_backend_optimization_level=0']
  flags += ['xla_cpu_parallel_codegen_split_count=1']
  flags += [f'{_EMITTERS}=false'] * _has_choice_of_emitters()
  return ' '.join(f'--{flag}' for flag in flags)


def as_users_do(
  lowered: jax.stages.Lowered, compiler_options: dict[str, Any] | None = None
) -> jax.stages.Compiled:
  """Compiles the buffers and fusions that users get."""
  options = {_EMITTERS: True} if _has_choice_of_emitters() else {}
  return _COMPILE(lowered, options | (compiler_options or {}))
