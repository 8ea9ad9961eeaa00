"""How a call computes what it computes: static choices, same result."""

import contextlib
import dataclasses

from kvjax.arguments import check_fields, check_type
from kvjax.context import using_kernel
from kvjax.kernels.kernel import Kernel


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
  """Choices that change how fast a call is, and its result by rounding alone.

  Attributes:
    kernel: that must attend, a name of `kvjax.kernels.KERNELS` or a
      `kvjax.kernels.Kernel`; None for the fastest.
    block: slots that the block loop reads at a time; None for its own choice.
    form: of latent attention, 'absorbed' or 'expanded'; None for the cheaper.
  """

  kernel: str | Kernel | None = None
  block: int | None = None
  form: str | None = None

  def __post_init__(self):
    check_fields(self, at_least={'block': 1})

  def applied(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which products and writes suit the kernel too.

    With kernel='blockwise' all of a call is plain JAX.
    """
    return using_kernel(self.kernel)


DEFAULT = DecodeOptions()


def with_kernel(
  options: DecodeOptions, kernel: str | Kernel | None
) -> DecodeOptions:
  """Returns options with a kernel, for None with the one that they have."""
  fix = 'give kvjax.DecodeOptions(...).'
  check_type('options', options, DecodeOptions, fix)
  if kernel is None:
    return options
  return dataclasses.replace(options, kernel=kernel)
