"""Derives from an uncached program what must be remembered to go on.

`analyze` reports what to remember, `derive` decodes with it. `docs/liveness.md`
explains both.
"""

from kvjax.liveness.analysis import analyze
from kvjax.liveness.decoder.derivation import DerivedCache, derive
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence.reading import reach
from kvjax.liveness.report import Dataflow, LivenessReport, Point, Row

__all__ = [
  'AnalysisError',
  'Dataflow',
  'DerivedCache',
  'LivenessReport',
  'Point',
  'Row',
  'analyze',
  'derive',
  'reach',
]
