"""What a collective costs: links and machines by name.

A call costs the latency of its link, and the time of the bytes that a device
sends. Of an array of s bytes and n devices these are

    all-reduce                                2 (n - 1) / n s
    all-gather, reduce-scatter, all-to-all      (n - 1) / n s

where s is the whole array, and for an all-to-all what one device has. A call
over m nodes of k devices has two stages: one inside the nodes over k devices,
and one between the nodes over m, in which each device sends its k-th part by
its own network card. Of an all-to-all a device sends everything by that card.
"""

import dataclasses
from typing import NamedTuple

from kvjax.memory import Device, device

# Not among `kvjax.memory.DEVICES`. NVIDIA DGX B200 datasheet: 1,440 GB and
# 64 TB/s of eight GPUs; Blackwell architecture brief: dense bfloat16 of HGX.
B200 = Device('B200', 180 * 10**9, 8 * 10**12, 2250 * 10**12, 'DGX B200')


class Link(NamedTuple):
  """What connects devices.

  Attributes:
    bandwidth: bytes a second that a device sends.
    latency: seconds of a call, whatever its size.
    source: where the figures are published.
  """

  bandwidth: float
  latency: float
  source: str


# Both ends of a published table, so what is between is a prediction.
NVLINK_4 = Link(
  250e9, 19e-6, 'NCCL on 8 H100, 128 B and 16 MB: Triton-distributed#57'
)
NVLINK_5 = Link(500e9, 19e-6, 'as NVLink 4, at twice its bandwidth: assumed')
INFINIBAND = Link(
  50e9,
  20e-6,
  '400 Gb/s a GPU: arXiv 2505.09343; 8 B between two nodes: nccl-tests#150',
)
ICI_4X4 = Link(
  90e9,
  6e-6,
  'two ports of 45 GB/s, six hops of 1 us: scaling book, TPUs, question 5',
)


@dataclasses.dataclass(frozen=True)
class Machine:
  """Equal devices, in nodes of some.

  Attributes:
    device: one of them.
    devices: how many.
    node: of these, how many a node has.
    inside: the link of devices of a node.
    between: the link of devices of different nodes.
  """

  device: Device
  devices: int
  node: int
  inside: Link
  between: Link = INFINIBAND


MACHINES = {
  f'{8 * nodes}x{card.name.lower().split("-")[0]}': Machine(
    card, 8 * nodes, 8, link
  )
  for card, link in (
    (device('H100-80'), NVLINK_4),
    (device('H200'), NVLINK_4),
    (B200, NVLINK_5),
  )
  for nodes in (1, 2, 4, 8)
} | {'v5e-16': Machine(device('TPU v5e'), 16, 16, ICI_4X4)}


def machine(name: str) -> Machine:
  """Returns a machine of `MACHINES`; raises ValueError for another name."""
  if name not in MACHINES:
    known = ', '.join(MACHINES)
    raise ValueError(f'machine={name!r} is unknown; known: {known}.')
  return MACHINES[name]


class Call(NamedTuple):
  """One collective.

  Attributes:
    name: what is moved.
    kind: as in the formulas above.
    size: bytes s.
    devices: that take part, neighbours first.
  """

  name: str
  kind: str
  size: float
  devices: int

  def stages(self, machine: Machine) -> list[tuple[Link, float]]:
    """Returns the link of each stage, and the bytes that a device sends."""
    inside = min(self.devices, machine.node)
    part = self.size / (1 if self.kind == 'all-to-all' else inside)
    stages = (
      (machine.inside, inside, self.size),
      (machine.between, self.devices // inside, part),
    )
    passes = 2 if self.kind == 'all-reduce' else 1
    return [
      (link, passes * (count - 1) / count * size)
      for link, count, size in stages
      if count > 1
    ]

  def seconds(self, machine: Machine) -> float:
    """Returns the time of the call on a machine."""
    return sum(
      link.latency + size / link.bandwidth
      for link, size in self.stages(machine)
    )
