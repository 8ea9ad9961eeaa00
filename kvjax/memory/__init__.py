"""What inference occupies: from a config, and from a compiled step."""

from kvjax.memory.buffers import Buffer, EncodingError, buffers
from kvjax.memory.devices import DEVICES, Device, device
from kvjax.memory.fit import Fit, Remedy, fit
from kvjax.memory.in_place import (
  Finding,
  InPlaceError,
  Verdict,
  assert_in_place,
  in_place,
)
from kvjax.memory.lines import Line
from kvjax.memory.measured import Measured, measure
from kvjax.memory.parameters import param_specs
from kvjax.memory.plan import MemoryPlan, plan
from kvjax.memory.reconcile import Row, reconcile
from kvjax.memory.roofline import intensity, roofline
from kvjax.memory.shards import Shards, shards
from kvjax.memory.step_time import StepTime, step_time

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
