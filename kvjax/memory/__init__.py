"""What inference occupies: from a config, and from a compiled step."""

from kvjax.memory.compiled.assignment import Buffer, EncodingError, buffers
from kvjax.memory.compiled.calls import compile_call, compile_encode
from kvjax.memory.compiled.measurement import Measured, measure
from kvjax.memory.compiled.reconciliation import PlannedBuffer, reconcile
from kvjax.memory.compiled.updates import (
  Finding,
  InPlaceError,
  InPlaceReport,
  assert_in_place,
  in_place,
)
from kvjax.memory.fitting import Fit, Remedy, budget_for, fit
from kvjax.memory.parts.lines import Line
from kvjax.memory.planning import MemoryPlan, plan
from kvjax.memory.speed.bounds import intensity, roofline
from kvjax.memory.speed.devices import DEVICES, Device, device
from kvjax.memory.speed.least_time import StepTime, step_time

__all__ = [
  'DEVICES',
  'Buffer',
  'Device',
  'EncodingError',
  'Finding',
  'Fit',
  'InPlaceError',
  'InPlaceReport',
  'Line',
  'Measured',
  'MemoryPlan',
  'PlannedBuffer',
  'Remedy',
  'StepTime',
  'assert_in_place',
  'budget_for',
  'buffers',
  'compile_call',
  'compile_encode',
  'device',
  'fit',
  'in_place',
  'intensity',
  'measure',
  'plan',
  'reconcile',
  'roofline',
  'step_time',
]

_RENAMED = {'Row': 'PlannedBuffer', 'Verdict': 'InPlaceReport'}
_MOVED = {
  'shards': 'kvjax.sharding.Rules',
  'param_specs': 'kvjax.sharding.of_params',
}


def __getattr__(name: str) -> object:
  """Raises for every unknown name; for an old one the error says the new."""
  if name in _RENAMED:
    raise AttributeError(
      f'kvjax.memory.{name} is kvjax.memory.{_RENAMED[name]} now.'
    )
  if name in _MOVED:
    raise AttributeError(f'kvjax.memory.{name} is {_MOVED[name]} now.')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
