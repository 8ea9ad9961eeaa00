"""How a stream is stored: encode once, decode block by block, never rewrite."""

from kvjax.streams.codecs.by_stream import (
  Codecs,
  apply_where_present,
  are_rotated,
  check_streams,
  codecs_of,
)
from kvjax.streams.codecs.centred import (
  Centred,
  add_constant,
  constants_of,
  is_centred,
  without_constants,
)
from kvjax.streams.codecs.codec import Codec, Trailing
from kvjax.streams.codecs.floats import Float8, Plain
from kvjax.streams.codecs.ggml import GGML
from kvjax.streams.codecs.hadamard import Hadamard
from kvjax.streams.codecs.integers import Affine, Int8
from kvjax.streams.codecs.lloyd_max import LloydMax

__all__ = (
  'GGML',
  'Affine',
  'Centred',
  'Codec',
  'Codecs',
  'Float8',
  'Hadamard',
  'Int8',
  'LloydMax',
  'Plain',
  'Trailing',
  'add_constant',
  'apply_where_present',
  'are_rotated',
  'check_streams',
  'codecs_of',
  'constants_of',
  'is_centred',
  'without_constants',
)
