"""How a stream is stored: encode once, decode block by block, never rewrite."""

from kvjax.streams.codecs.by_stream import (
  Codecs,
  apply_where_present,
  check_streams,
  codecs_of,
  tiering_of,
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
  'Codec',
  'Codecs',
  'Float8',
  'Hadamard',
  'Int8',
  'LloydMax',
  'Plain',
  'Tiering',
  'Trailing',
  'apply_where_present',
  'check_streams',
  'codecs_of',
  'tiering_of',
)
