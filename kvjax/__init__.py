"""kvjax: what a transformer must remember while it generates.

Letters of every shape: B batch, T query tokens, S slots (or source), N heads,
K kv heads, G queries a kv head, H key width, E value width, D model, R latent,
P rotary, L layers, F hidden, V vocabulary.
"""

from kvjax import interop, liveness, memory, testing
from kvjax.attention.attend import Scoring, attend, merge
from kvjax.attention.bias import Alibi, RelativeBias
from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.attention.rotary import Rotary
from kvjax.caches.bounded import Bounded
from kvjax.caches.dense import Dense
from kvjax.caches.kind import Kind
from kvjax.caches.paged import Paged
from kvjax.caches.ring import Ring
from kvjax.caches.scores import HeavyHitters, LastQuery, Recency, Score
from kvjax.caches.sinks import Sinks
from kvjax.checkpoints.load import load_checkpoint, load_config
from kvjax.checkpoints.prompt_cache.save import load_cache, save_cache
from kvjax.decoding.cache import Cache, DonatedCacheError, init_cache
from kvjax.decoding.generation import generate
from kvjax.decoding.inspection import check, inspect
from kvjax.decoding.rows import concat, earliest, fork, repeat, rewind, take
from kvjax.decoding.sampling import Sampling, sample
from kvjax.decoding.steps import decode_step, extend, prefill
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.decoder import init_params
from kvjax.models.encoder import encode
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP
from kvjax.models.quantize import quantize
from kvjax.models.uncached import forward
from kvjax.streams.codecs import Codec, Int8, Plain
from kvjax.streams.view import View
from kvjax.streams.visibility import Visibility

__version__ = '0.1.0'

__all__ = (
  'Alibi',
  'Bounded',
  'Cache',
  'Codec',
  'Dense',
  'DonatedCacheError',
  'Encoder',
  'Experts',
  'Grouped',
  'HeavyHitters',
  'Int8',
  'Kind',
  'LastQuery',
  'Latent',
  'Layer',
  'MLP',
  'ModelConfig',
  'Norm',
  'Paged',
  'Plain',
  'Recency',
  'RelativeBias',
  'Ring',
  'Rotary',
  'Sampling',
  'Score',
  'Scoring',
  'Sinks',
  'View',
  'Visibility',
  'attend',
  'check',
  'concat',
  'decode_step',
  'earliest',
  'encode',
  'extend',
  'fork',
  'forward',
  'generate',
  'init_cache',
  'init_params',
  'inspect',
  'interop',
  'liveness',
  'load_cache',
  'load_checkpoint',
  'load_config',
  'memory',
  'merge',
  'prefill',
  'quantize',
  'repeat',
  'rewind',
  'sample',
  'save_cache',
  'take',
  'testing',
)
