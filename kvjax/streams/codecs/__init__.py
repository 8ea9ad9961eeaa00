"""How a stream is stored: encode once, decode block by block, never rewrite."""

from kvjax.streams.codecs.by_stream import (
  Codecs,
  apply_where_present,
  are_rotated,
  check_streams,
  codecs_of,
  exact_codecs,
  tiering_of,
)
from kvjax.streams.codecs.centred import (
  Centred,
  add_constant,
  constants_of,
  is_centred,
  without_constants,
)
from kvjax.streams.codecs.codec import Codec, Tiering, Trailing
from kvjax.streams.codecs.floats import Float8, Plain
from kvjax.streams.codecs.ggml import GGML
from kvjax.streams.codecs.hadamard import Hadamard
from kvjax.streams.codecs.integers import Affine, Int8
from kvjax.streams.codecs.kivi import KIVI, ByChannel
from kvjax.streams.codecs.lloyd_max import LloydMax

__all__ = (
  'GGML',
  'KIVI',
  'Affine',
  'ByChannel',
  'Centred',
  'Codec',
  'Codecs',
  'Float8',
  'Hadamard',
  'Int8',
  'LloydMax',
  'Plain',
  'Tiering',
  'Trailing',
  'add_constant',
  'apply_where_present',
  'are_rotated',
  'check_streams',
  'codecs_of',
  'constants_of',
  'exact_codecs',
  'is_centred',
  'tiering_of',
  'without_constants',
)
