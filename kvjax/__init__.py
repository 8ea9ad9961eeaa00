"""kvjax: what a transformer must remember while it generates."""

from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.attention.rotary import Rotary
from kvjax.decoding.cache import Cache, DonatedCacheError, init_cache
from kvjax.decoding.inspect import check, inspect
from kvjax.decoding.steps import decode_step, extend, prefill
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import init_params
from kvjax.models.encoder import encode
from kvjax.models.forward import forward
from kvjax.models.mlp import MLP

__version__ = '0.1.0'
