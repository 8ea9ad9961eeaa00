"""What inference occupies: from a config, and from a compiled step."""

from kvjax.memory.compiled.assignment import Buffer, EncodingError, buffers
from kvjax.memory.compiled.calls import compile_call, compile_encode
from kvjax.memory.compiled.measurement import Measured, measure
from kvjax.memory.compiled.reconciliation import Row, reconcile
from kvjax.memory.compiled.updates import (
  Finding,
  InPlaceError,
  Verdict,
  assert_in_place,
  in_place,
)
from kvjax.memory.fitting import Fit, Remedy, fit
from kvjax.memory.parts.lines import Line
from kvjax.memory.parts.param_bytes import param_specs
from kvjax.memory.parts.sharding import Shards, shards
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
  'Line',
  'Measured',
  'MemoryPlan',
  'Remedy',
  'Row',
  'Shards',
  'StepTime',
  'Verdict',
  'assert_in_place',
  'buffers',
  'compile_call',
  'compile_encode',
  'device',
  'fit',
  'in_place',
  'intensity',
  'measure',
  'param_specs',
  'plan',
  'reconcile',
  'roofline',
  'shards',
  'step_time',
]
