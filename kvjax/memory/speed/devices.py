"""Memory, bandwidth and bfloat16 rate of named accelerators.

Figures are the vendor's, for one device, dense (no sparsity). Capacities are
decimal as sold; a GPU reports a little more to its programs (an H200 reports
151,397,597,184 bytes, an A100-80 85,100,068,864, by openxla/xla's
`xla/backends/gpu/target_config/specs/`), so what fits here fits there with
room for the driver's own context.
"""

import dataclasses
import difflib


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator, as sold.

  Attributes:
    name: as in `kvjax.memory.DEVICES`.
    memory: bytes.
    bandwidth: bytes of device memory a second.
    flops: bfloat16 operations a second, dense, with float32 accumulation.
    source: where the figures are published.
  """

  name: str
  memory: int
  bandwidth: int
  flops: int
  source: str

  @property
  def platform(self) -> str:
    """What JAX calls its backend: 'gpu' or 'tpu'."""
    return 'tpu' if self.name.startswith('TPU') else 'gpu'

  @property
  def bytes_per_flop(self) -> float:
    """Bytes the memory delivers in the time of one operation."""
    return self.bandwidth / self.flops


_GB = 10**9
_TERA = 10**12

DEVICES: tuple[Device, ...] = (
  Device(
    'H200',
    141 * _GB,
    4_800 * _GB,
    989 * _TERA,
    'NVIDIA H200 datasheet, SXM (1,979 TFLOPS is with sparsity)',
  ),
  Device(
    'H100-80',
    80 * _GB,
    3_350 * _GB,
    989 * _TERA,
    'NVIDIA H100 datasheet, SXM5 (1,979 TFLOPS is with sparsity)',
  ),
  Device(
    'A100-40',
    40 * _GB,
    1_555 * _GB,
    312 * _TERA,
    'NVIDIA A100 datasheet, 40GB SXM4',
  ),
  Device(
    'A100-80',
    80 * _GB,
    2_039 * _GB,
    312 * _TERA,
    'NVIDIA A100 datasheet, 80GB SXM4',
  ),
  Device(
    'L4',
    24 * _GB,
    300 * _GB,
    121 * _TERA,
    'NVIDIA L4 datasheet (242 TFLOPS is with sparsity)',
  ),
  # A GeForce accumulates in float32 at half its float16 rate.
  Device(
    'RTX 4090',
    24 * _GB,
    1_008 * _GB,
    165_200 * _GB,
    'NVIDIA Ada GPU architecture whitepaper, appendix A, RTX 4090',
  ),
  Device(
    'TPU v5e',
    16 * _GB,
    819 * _GB,
    197 * _TERA,
    'cloud.google.com/tpu/docs/v5e (819 GBps; 800 in later revisions)',
  ),
  Device(
    'TPU v5p',
    95 * _GB,
    2_765 * _GB,
    459 * _TERA,
    'cloud.google.com/tpu/docs/v5p',
  ),
  Device(
    'TPU v6e',
    32 * _GB,
    1_640 * _GB,
    918 * _TERA,
    'cloud.google.com/tpu/docs/v6e (1640 GBps; 1600 in later revisions)',
  ),
)
"""Accelerators that `device` and `fit` know by name."""


def device(name: str) -> Device:
  """Returns the record of a named accelerator; case and spacing are free.

  Args:
    name: as in `DEVICES`, such as 'H100-80'.

  Raises:
    ValueError: no such device; the message has the nearest names.
  """
  known = {_key(d.name): d for d in DEVICES}
  if _key(name) in known:
    return known[_key(name)]
  near = difflib.get_close_matches(_key(name), known, n=3, cutoff=0.4)
  # 'v5e' and 'a100' are parts of names; distance alone ranks them low.
  near += [k for k in known if _key(name) in k and _key(name) and k not in near]
  names = [known[key].name for key in near] or [d.name for d in DEVICES]
  raise ValueError(
    f'unknown device {name!r}; the nearest known: {", ".join(names)}.'
  )


def _key(name: str) -> str:
  return ''.join(c for c in name.lower() if c.isalnum())
