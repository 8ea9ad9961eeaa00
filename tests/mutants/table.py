"""Faults that the suite must notice, in the order in which they are tried."""

from tests.mutants import (
  analyses,
  checkpoints,
  families,
  models,
  reading,
  remembering,
  sharding,
  storing,
  studies,
)
from tests.mutants.fault import Mutant
from tests.mutants.pages import REFERENCE

MUTANTS: tuple[Mutant, ...] = (
  remembering.MASKS
  + remembering.KINDS
  + remembering.BOUNDED
  + storing.CODECS
  + storing.CODES
  + remembering.PAGES
  + remembering.ALGEBRA
  + reading.CORE
  + reading.POSITIONS
  + reading.STEPS
  + models.MODELS
  + reading.SAMPLING
  + reading.CALLS
  + reading.LIBRARY
  + analyses.LIVENESS
  + analyses.MEMORY
  + analyses.SHARDING
  + sharding.MESH
  + checkpoints.CHECKPOINTS
  + families.FAMILIES
  + checkpoints.PARTS
  + checkpoints.EXPORT
  + studies.EXPERIMENTS
  + REFERENCE
)
