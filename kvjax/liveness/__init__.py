"""Derives from an uncached program what must be remembered to go on."""

from kvjax.liveness.analysis import analyze
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.report import LivenessReport, Point

__all__ = ['AnalysisError', 'LivenessReport', 'Point', 'analyze']
