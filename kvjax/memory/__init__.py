"""What inference occupies: from a config, and from a compiled step."""

from kvjax.memory.buffers import Buffer, EncodingError, buffers
from kvjax.memory.devices import DEVICES, Device, device
from kvjax.memory.in_place import (
  Finding,
  InPlaceError,
  Verdict,
  assert_in_place,
  in_place,
)
from kvjax.memory.measured import Measured, measure
from kvjax.memory.plan import Line, MemoryPlan, plan

__all__ = [
  'DEVICES',
  'Buffer',
  'Device',
  'EncodingError',
  'Finding',
  'InPlaceError',
  'Line',
  'Measured',
  'MemoryPlan',
  'Verdict',
  'assert_in_place',
  'buffers',
  'device',
  'in_place',
  'measure',
  'plan',
]
