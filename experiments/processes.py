"""The processes of one run on a cluster: how they join, and which one writes.

All processes of a step run the same command line and compute the same. The
first one writes. What another one writes goes to a folder that ends with it,
and its stdout to nowhere, so that no experiment has to know which one it is.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import jax
from absl import flags

# For each launcher that JAX knows: the variables in which `initialize` of
# `jax.distributed` finds a step, and those that count its tasks. The shell of
# an allocation has the counts and no step. In an interactive step, SLURM_NTASKS
# may still count the tasks of the allocation.
_STEPS = {
  'srun': (
    ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'),
    ('SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS'),
  ),
  'mpirun': (
    ('OMPI_MCA_orte_hnp_uri', 'OMPI_COMM_WORLD_RANK'),
    ('OMPI_COMM_WORLD_SIZE',),
  ),
}
_OUTPUTS = ('workdir', 'out', 'save_prompt_cache')


def count_tasks() -> int:
  """Returns how many tasks the step of this process has; 1 for no step."""
  for needed, counts in _STEPS.values():
    if all(name in os.environ for name in needed):
      return next((int(os.environ[x]) for x in counts if x in os.environ), 1)
  return 1


def join(distributed: str) -> None:
  """Joins the processes of a step, before any device is touched.

  Args:
    distributed: 'yes', 'no', or 'auto': where the step has more than one task.

  Raises:
    ValueError: JAX cannot join them.
  """
  if distributed == 'no' or (distributed == 'auto' and count_tasks() == 1):
    return
  try:
    jax.distributed.initialize()
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f'distributed={distributed!r}: JAX cannot join the processes of this '
      f'run: {str(error).rstrip(".")}. Start them with srun or mpirun, or give '
      '--distributed=no.'
    ) from None


@contextlib.contextmanager
def one_writer(values: flags.FlagValues) -> Iterator[None]:
  """Makes all processes of a run but the first write to a temporary folder.

  Args:
    values: flags of the experiment; those that name its output are changed.
  """
  if not jax.distributed.is_initialized() or jax.process_index() == 0:
    yield
    return
  with (
    tempfile.TemporaryDirectory() as folder,
    open(os.devnull, 'w') as nowhere,
    contextlib.redirect_stdout(nowhere),
  ):
    for name in _OUTPUTS:
      place = values[name].value if name in values else None
      if place:
        values[name].value = str(pathlib.Path(folder, pathlib.Path(place).name))
    yield
