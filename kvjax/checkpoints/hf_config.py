"""A published config.json: its keys and values, each of its key's kind.

`Settings` refuses a value of another kind than its key's when the value is
read: a text where a number belongs would otherwise end in arithmetic whose
error names no key, NaN in an answer of NaN, and a layer count of a billion in a
list of that length. null is always allowed, and its meaning depends on the
family. Keys that the family does not read are not looked at.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvjax.arguments import LARGEST, is_number, is_whole
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

# The spelling of checkpoints against that of `kvjax.models.mlp.ACTIVATIONS`.
ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'gelu_accurate': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
  'relu2': 'relu2',
}
# Of a layer that sees all earlier tokens, and of a layer with a window.
FULL = 'full_attention'
SLIDING = 'sliding_attention'
DTYPES = ('bfloat16', 'float16', 'float32')

# Far above every published model, and low enough that nothing that is made
# from one of these numbers alone takes long to make.
MAX_LAYERS = 1024  # the deepest published transformer has 1,000 (DeepNet)
MAX_SIZE = 1 << 24  # the largest published size is a vocabulary of a million
# The smallest normal number of float32, in which models compute.
SMALLEST = float(np.finfo(np.float32).tiny)

# Keys of all families by the kind of their values.
LAYERS = """
  _sliding_window_pattern decoder_layers decoder_sparse_step encoder_layers
  interleave_moe_layer_step n_layer no_rope_layer_interval num_decoder_layers
  num_hidden_layers num_layers sliding_window_pattern
"""
SIZE = """
  d_ff d_kv d_model decoder_attention_heads decoder_ffn_dim dim_model_base
  encoder_attention_heads encoder_ffn_dim ffn_hidden_size head_dim hidden_size
  intermediate_size kv_lora_rank n_embd n_embed n_group n_head n_inner
  num_attention_heads num_heads num_key_value_heads num_kv_heads num_mel_bins
  original_max_position_embeddings qk_nope_head_dim qk_rope_head_dim
  relative_attention_num_buckets topk_group v_head_dim vocab_size
"""
# A model without experts or a latent may say that they have size 0.
WHOLE = """
  moe_intermediate_size n_routed_experts q_lora_rank
  first_k_dense_replace learned_positions max_position_embeddings
  max_source_positions max_target_positions max_window_layers n_ctx
  n_positions n_shared_experts num_experts num_experts_per_tok
  num_ln_in_parallel_attn num_local_experts relative_attention_max_distance
  shared_expert_size
"""
NUMBER = """
  beta_fast beta_slow layer_norm_eps layer_norm_epsilon llama_4_scaling_beta
  mscale mscale_all_dim norm_eps norm_epsilon rms_norm_eps
"""
POSITIVE = """
  alpha attention_factor attn_logit_softcapping clip_qkv factor
  final_logit_softcapping high_freq_factor logit_scale low_freq_factor
  partial_rotary_factor query_pre_attn_scalar rope_local_base_freq rope_theta
  routed_scaling_factor scale_depth scale_emb swiglu_alpha swiglu_limit
"""
SWITCH = """
  alibi attention_bias bias gated is_gated_act mlp_bias multi_query
  new_decoder_architecture norm_topk_prob parallel parallel_attn rope_interleave
  scale_attn_by_inverse_layer_idx scale_attn_weights scale_decoder_outputs
  tie_word_embeddings truncate use_qk_norm use_sliding_window
"""
TEXT = """
  activation activation_function dense_act_fn feed_forward_proj hidden_act
  hidden_activation model_type norm quant_method rope_type scoring_func
  topk_method type
"""
OBJECT = 'quantization_config rope_parameters rope_scaling text_config'

Rule = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[str, Rule]:
  return (
    f'a whole number from {low} to {high}',
    lambda x: is_whole(x, low, high),
  )


def _instance(words: str, kind: type) -> tuple[str, Rule]:
  return words, lambda x: isinstance(x, kind)


def _each(words: str, rule: Rule) -> tuple[str, Rule]:
  return (
    f'a list, each {words}',
    lambda x: isinstance(x, list | tuple) and all(map(rule, x)),
  )


_NUMBER = 'a number, 0 or above and finite', lambda x: is_number(x, 0)
_POSITIVE = (
  'a number above 0, finite in float32',
  lambda x: is_number(x, SMALLEST),
)
_TEXT = _instance('a text', str)

# Of each key, the words for its kind and the rule of that kind.
KEY_KINDS: dict[str, tuple[str, Rule]] = {
  key: kind
  for keys, kind in (
    (LAYERS, _whole(1, MAX_LAYERS)),
    (SIZE, _whole(1, MAX_SIZE)),
    (WHOLE, _whole(0, LARGEST)),
    ('attention_chunk_size sliding_window', _whole(1, LARGEST)),
    # Llama 4 Scout says 4, which means true.
    (
      'attn_temperature_tuning',
      (
        'true, false or a whole number',
        lambda x: isinstance(x, bool) or is_whole(x, 0),
      ),
    ),
    (NUMBER, _NUMBER),
    (POSITIVE, _POSITIVE),
    (SWITCH, _instance('true or false', bool)),
    (TEXT, _TEXT),
    (OBJECT, _instance('an object', Mapping)),
    ('layer_types mlp_layer_types', _each(*_TEXT)),
    ('long_factor short_factor', _each(*_POSITIVE)),
    (
      'dense_layers mlp_only_layers moe_layers no_rope_layers',
      _each(*_whole(0, LARGEST)),
    ),
    ('weight_block_size', _each(*_whole(1, MAX_SIZE))),
    (
      'keys_and_values_of',
      _each('a layer or null', lambda x: x is None or is_whole(x, 0)),
    ),
  )
  for key in keys.split()
}


# Of a key that is not named above: by the type of its published default.
DEFAULT_KINDS: dict[type, tuple[str, Rule]] = {
  bool: KEY_KINDS['tie_word_embeddings'],
  int: KEY_KINDS['max_position_embeddings'],
  float: _POSITIVE,
  str: _TEXT,
}


def check_values(values: Mapping[str, Any], default: Any = None) -> None:
  """Raises ValueError for a value that is not of its key's kind, by name.

  Args:
    values: by key.
    default: published, which tells the kind of a key that no table has.
  """
  for key, value in values.items():
    kind = KEY_KINDS.get(key, DEFAULT_KINDS.get(type(default)))
    if kind is None or value is None:
      continue
    words, rule = kind
    if not rule(value):
      raise ValueError(
        f'{key}={reprlib.repr(value)} of config.json must be {words}.'
      )


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys and values of a config.json.

  Attributes:
    values: as parsed; older and newer key styles.
  """

  values: Mapping[str, Any]

  @property
  def family(self) -> str:
    return str(self.values.get('model_type'))

  def get(self, key: str, default: Any) -> Any:
    """Returns the value; the published default where it is absent or null.

    Raises:
      ValueError: the value is not of its key's kind, or of its default's where
        no table has the key.
    """
    value = self.raw(key)
    check_values({key: value}, default)
    return default if value is None else value

  def raw(self, key: str, default: Any = None) -> Any:
    """Returns the value, null included; the default only where it is absent.

    Raises:
      ValueError: the value is not of its key's kind.
    """
    if key not in self.values:
      return default
    check_values({key: self.values[key]})
    return self.values[key]

  def need(self, *keys: str) -> Any:
    """Returns the value of the first key that has one.

    Args:
      *keys: spellings of one key.

    Raises:
      ValueError: no key has a value.
    """
    for key in keys:
      if (value := self.raw(key)) is not None:
        return value
    raise ValueError(
      f'config.json of model_type={self.family!r} has no {keys[0]!r}.'
    )

  def only(self, key: str, *allowed: Any) -> None:
    """Raises ValueError unless the value is absent, null or allowed."""
    value = self.raw(key)
    if value is not None and value not in allowed:
      raise ValueError(
        f'{key}={value!r} of model_type={self.family!r} is not supported; '
        f'supported: {", ".join(repr(x) for x in allowed)}.'
      )

  def refuse(self, *keys: str) -> None:
    """Raises ValueError for a key whose meaning here is not known."""
    for key in keys:
      if value := self.raw(key):
        raise ValueError(
          f'{key}={value!r} is not supported for model_type='
          f'{self.family!r}; remove it if it changes nothing.'
        )

  def activation(self, *keys: str, default: str = 'silu') -> str:
    """Returns kvjax's name of the activation under one of these keys."""
    present = [key for key in keys if self.raw(key) is not None]
    key = present[0] if present else keys[0]
    name = self.get(key, default)
    if name not in ACTIVATIONS:
      raise ValueError(
        f'Unknown activation {key}={name!r}; supported: '
        f'{", ".join(sorted(ACTIVATIONS))}.'
      )
    return ACTIVATIONS[name]

  def head_width(self, default: int | None = None) -> int:
    """Returns `head_dim`; null means hidden size over heads.

    Args:
      default: published default, where config.json has no such key.
    """
    width = self.raw('head_dim', default)
    if width is not None:
      return width
    hidden = self.need('hidden_size')
    return self.divide('hidden_size', hidden, self.need('num_attention_heads'))

  def divide(self, key: str, total: int, parts: int) -> int:
    """Returns `total / parts`, which must be whole."""
    if total % parts:
      raise ValueError(
        f'{key}={total} is not a multiple of the {parts} attention heads, '
        'and config.json gives no head_dim.'
      )
    return total // parts

  def kv_heads(self, default: int | None = None) -> int:
    """Returns `num_key_value_heads`; null means as many as query heads.

    Args:
      default: published default, where config.json has no such key.
    """
    kv_heads = self.raw('num_key_value_heads', default)
    return self.need('num_attention_heads') if kv_heads is None else kv_heads

  def per_layer(self, key: str, default: list[Any]) -> list[Any]:
    """Returns the values of a key that has one for each layer.

    Args:
      key: of a list.
      default: the list where config.json has none, repeated for all layers.
    """
    count = self.need('num_hidden_layers')
    repeated = [default[i % len(default)] for i in range(count)]
    values = self.get(key, repeated)
    if len(values) != count:
      raise ValueError(
        f'{key} names {len(values)} layers; num_hidden_layers={count}.'
      )
    return values

  def windows(self, default: list[str], window: int) -> list[int | None]:
    """Returns the window of each layer, by `layer_types`.

    None is the window of a layer that sees all earlier tokens.

    Args:
      default: `layer_types` where config.json has none, repeated for all
        layers.
      window: published default of `sliding_window`.
    """
    return self.spans(SLIDING, default, 'sliding_window', window)

  def spans(
    self, limited: str, default: list[str], key: str, span: int | None
  ) -> list[int | None]:
    """Returns the span of each layer, by `layer_types`.

    None is the span of a layer that sees all earlier tokens.

    Args:
      limited: type of a layer that sees a span of tokens.
      default: `layer_types` where config.json has none, repeated for all
        layers.
      key: of the span.
      span: published default of that key.
    """
    span = self.raw(key, span)
    kinds = self.per_layer('layer_types', default)
    for kind in kinds:
      if kind not in (FULL, limited):
        raise ValueError(
          f'Unknown layer type {kind!r}; supported: {FULL!r}, {limited!r}.'
        )
      if kind == limited and span is None:
        raise ValueError(f'layer_types has {limited}, but {key} is null.')
    return [span if kind == limited else None for kind in kinds]

  def mlp(self, bias: bool = False) -> MLP:
    """Returns the gated MLP of most families."""
    return MLP(
      self.need('intermediate_size'), self.activation('hidden_act'), bias=bias
    )

  def rms_norm(self, eps: float, offset: float = 0.0) -> Norm:
    """Returns the norm of most families; `eps` is its published default."""
    return Norm(self.get('rms_norm_eps', eps), offset=offset)

  def dtype(self) -> str:
    """Returns the name of the params' dtype; float32 where no key says it."""
    name = str(self.get('dtype', self.get('torch_dtype', 'float32')))
    name = name.removeprefix('torch.')
    if name not in DTYPES:
      raise ValueError(
        f'dtype={name!r} is not supported; supported: {", ".join(DTYPES)}.'
      )
    return name

  def model(
    self,
    layers: list[Layer],
    *,
    tied: bool,
    norm: Norm,
    tempered: bool = False,
    **special: Any,
  ) -> ModelConfig:
    """Returns a config, with the parts that every config.json spells the same.

    Args:
      layers: of the decoder.
      tied: published default of `tie_word_embeddings`.
      norm: of the whole model.
      tempered: the family reads `attn_temperature_tuning`, which others refuse.
      **special: further fields of `ModelConfig`.
    """
    if not tempered:
      self.refuse('attn_temperature_tuning')
    return ModelConfig(
      vocab_size=self.need('vocab_size'),
      width=self.need('hidden_size', 'n_embd', 'd_model', 'n_embed'),
      layers=tuple(layers),
      norm=norm,
      tied=bool(self.get('tie_word_embeddings', tied)),
      dtype=self.dtype(),
      **special,
    )
