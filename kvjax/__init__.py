"""kvjax: what a transformer must remember while it generates.

Letters of every shape: B batch, T query tokens, S slots (or source), N heads,
K kv heads, G queries a kv head, H key width, E value width, D model, R latent,
P rotary, L layers, F hidden, V vocabulary.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kvjax import kernels
from kvjax.attention.attend import Scoring, attend, merge
from kvjax.attention.bias import Alibi, RelativeBias
from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.attention.rotary import Rotary
from kvjax.attention.variant import Form, Table, Variant
from kvjax.caches.array_spec import array_spec
from kvjax.caches.bounded import Bounded
from kvjax.caches.dense import Dense
from kvjax.caches.evidence import Evidence
from kvjax.caches.key_scores import CUR, KeyDiff, KeyNorm, LagKV, Random
from kvjax.caches.kind import BookChange, Kind
from kvjax.caches.layer_budgets import pyramid
from kvjax.caches.paged import Paged
from kvjax.caches.residual import Residual
from kvjax.caches.ring import Ring
from kvjax.caches.scores import (
  TOVA,
  ExpectedAttention,
  HeavyHitters,
  LastQuery,
  ObservedAttention,
  Recency,
  Score,
  SnapKV,
)
from kvjax.caches.sinks import Sinks
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache, DonatedCacheError, check, inspect
from kvjax.decoding.calibration import calibrate
from kvjax.decoding.compression import compress
from kvjax.decoding.exported import register_pytrees
from kvjax.decoding.generation import generate
from kvjax.decoding.logit_adjustments import (
  AllowedTokens,
  LogitBias,
  RepetitionPenalty,
)
from kvjax.decoding.options import DecodeOptions
from kvjax.decoding.rows import concat, earliest, fork, repeat, rewind, take
from kvjax.decoding.sampling import Sampling, sample
from kvjax.decoding.steps import decode_step, extend, prefill
from kvjax.layers.linear import init_linear, join_heads, linear, split_heads
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.encoder import Encoded, encode
from kvjax.models.experts import Experts
from kvjax.models.initialize import init_params
from kvjax.models.mlp import MLP
from kvjax.models.uncached import forward
from kvjax.streams.codecs import (
  GGML,
  KIVI,
  Affine,
  Centred,
  Codec,
  Float8,
  Hadamard,
  Int8,
  LloydMax,
  Plain,
)
from kvjax.streams.scoring import Temperature
from kvjax.streams.stream import Stream
from kvjax.streams.view import Streams, View, contiguous_view, fresh_view
from kvjax.streams.visibility import Visibility

register_pytrees()

if TYPE_CHECKING:  # loaded when they are first used
  from kvjax import (
    checkpoints,
    interop,
    liveness,
    memory,
    sharding,
    testing,
    text,
  )
  from kvjax.checkpoints.load import load_checkpoint, load_config
  from kvjax.checkpoints.prompt_cache.save import load_cache, save_cache
  from kvjax.checkpoints.saving.save import save_checkpoint
  from kvjax.models.quantize import quantize
else:
  _MODULES = (
    'checkpoints',
    'interop',
    'liveness',
    'memory',
    'sharding',
    'testing',
    'text',
  )
  _FUNCTIONS = {
    'load_checkpoint': 'kvjax.checkpoints.load',
    'load_config': 'kvjax.checkpoints.load',
    'load_cache': 'kvjax.checkpoints.prompt_cache.save',
    'quantize': 'kvjax.models.quantize',
    'save_cache': 'kvjax.checkpoints.prompt_cache.save',
    'save_checkpoint': 'kvjax.checkpoints.saving.save',
  }

  def __getattr__(name: str) -> Any:
    if name in _MODULES:
      return importlib.import_module(f'kvjax.{name}')
    if name in _FUNCTIONS:
      function = getattr(importlib.import_module(_FUNCTIONS[name]), name)
      globals()[name] = function
      return function
    raise AttributeError(f'module kvjax has no attribute {name!r}')

  def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__version__ = '0.1.0'

__all__ = (
  'Affine',
  'Alibi',
  'AllowedTokens',
  'BookChange',
  'Bounded',
  'CUR',
  'Cache',
  'Centred',
  'Codec',
  'DecodeOptions',
  'Dense',
  'DonatedCacheError',
  'Encoded',
  'Encoder',
  'Evidence',
  'ExpectedAttention',
  'Experts',
  'Float8',
  'Form',
  'GGML',
  'Grouped',
  'Hadamard',
  'HeavyHitters',
  'Int8',
  'KIVI',
  'KeyDiff',
  'KeyNorm',
  'Kind',
  'LagKV',
  'LastQuery',
  'Latent',
  'Layer',
  'LloydMax',
  'LogitBias',
  'MLP',
  'ModelConfig',
  'Norm',
  'ObservedAttention',
  'Paged',
  'Plain',
  'Random',
  'Recency',
  'RelativeBias',
  'RepetitionPenalty',
  'Residual',
  'Ring',
  'Rotary',
  'Sampling',
  'Score',
  'Scoring',
  'Sinks',
  'SnapKV',
  'Stream',
  'Streams',
  'TOVA',
  'Table',
  'Temperature',
  'Variant',
  'View',
  'Visibility',
  'array_spec',
  'attend',
  'calibrate',
  'check',
  'checkpoints',
  'compress',
  'concat',
  'contiguous_view',
  'decode_step',
  'earliest',
  'encode',
  'extend',
  'fork',
  'forward',
  'fresh_view',
  'generate',
  'init_cache',
  'init_linear',
  'init_params',
  'inspect',
  'interop',
  'join_heads',
  'kernels',
  'linear',
  'liveness',
  'load_cache',
  'load_checkpoint',
  'load_config',
  'memory',
  'merge',
  'prefill',
  'pyramid',
  'quantize',
  'repeat',
  'rewind',
  'sample',
  'save_cache',
  'save_checkpoint',
  'sharding',
  'split_heads',
  'take',
  'testing',
  'text',
)
