"""A published config.json, read with care: what is unknown is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kvjax.checkpoints.values import check_values
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig

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
}
DTYPES = ('bfloat16', 'float16', 'float32')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys and values of a config.json.

  Attributes:
    values: as parsed; older and newer key styles.
  """

  values: Mapping[str, Any]

  def __post_init__(self):
    check_values(self.values)

  @property
  def family(self) -> str:
    return str(self.values.get('model_type'))

  def get(self, key: str, default: Any) -> Any:
    """Returns the value; the published default where it is absent or null."""
    value = self.values.get(key)
    return default if value is None else value

  def raw(self, key: str, default: Any = None) -> Any:
    """Returns the value, null included; the default only where it is absent."""
    return self.values.get(key, default)

  def need(self, *keys: str) -> Any:
    """Returns the first of some spellings that is there.

    Raises:
      ValueError: none is.
    """
    for key in keys:
      if self.values.get(key) is not None:
        return self.values[key]
    raise ValueError(
      f'config.json of model_type={self.family!r} has no {keys[0]!r}.'
    )

  def only(self, key: str, *allowed: Any) -> None:
    """Raises ValueError unless the value is absent, null or one allowed."""
    value = self.values.get(key)
    if value is not None and value not in allowed:
      raise ValueError(
        f'{key}={value!r} of model_type={self.family!r} is not supported; '
        f'supported: {", ".join(repr(x) for x in allowed)}.'
      )

  def refuse(self, *keys: str) -> None:
    """Raises ValueError for a key whose meaning here is not known."""
    for key in keys:
      if self.values.get(key):
        raise ValueError(
          f'{key}={self.values[key]!r} is not supported for model_type='
          f'{self.family!r}; remove it if it changes nothing.'
        )

  def activation(self, *keys: str, default: str = 'silu') -> str:
    """Returns kvjax's name of the activation under one of these keys."""
    given = [k for k in keys if self.values.get(k) is not None]
    key = given[0] if given else keys[0]
    name = self.get(key, default)
    if name not in ACTIVATIONS:
      raise ValueError(
        f'Unknown activation {key}={name!r}; supported: '
        f'{", ".join(sorted(ACTIVATIONS))}.'
      )
    return ACTIVATIONS[name]

  def head_width(self) -> int:
    """Returns `head_dim`, or hidden size over heads."""
    width = self.values.get('head_dim')
    if width is not None:
      return width
    hidden, heads = self.need('hidden_size'), self.need('num_attention_heads')
    return self.divide('hidden_size', hidden, heads)

  def divide(self, key: str, total: int, parts: int) -> int:
    """Returns `total / parts`, which must be whole."""
    if total % parts:
      raise ValueError(
        f'{key}={total} is not a multiple of the {parts} attention heads, '
        'and config.json gives no head_dim.'
      )
    return total // parts

  def kv_heads(self, default: int | None = None) -> int:
    """Returns `num_key_value_heads`; null means one a query head.

    Args:
      default: published default, where config.json has no such key.
    """
    found = self.raw('num_key_value_heads', default)
    return self.need('num_attention_heads') if found is None else found

  def windows(self, default: list[str], window: int) -> list[int | None]:
    """Returns the window of each layer, None where it sees all, by layer_types.

    Args:
      default: `layer_types` where config.json has none.
      window: published default of `sliding_window`.
    """
    count = self.need('num_hidden_layers')
    kinds = self.get('layer_types', default)
    if len(kinds) != count:
      raise ValueError(
        f'layer_types names {len(kinds)} layers; num_hidden_layers={count}.'
      )
    return [self._window(kind, window) for kind in kinds]

  def _window(self, kind: str, default: int) -> int | None:
    if kind == 'full_attention':
      return None
    if kind != 'sliding_attention':
      raise ValueError(
        f"Unknown layer type {kind!r}; supported: 'full_attention', "
        "'sliding_attention'."
      )
    window = self.raw('sliding_window', default)
    if window is None:
      raise ValueError(
        'layer_types has sliding_attention, but sliding_window is null.'
      )
    return window

  def dtype(self) -> str:
    """Returns the dtype of params by name; float32 where none is given."""
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
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    positions: int = 0,
    encoder: Encoder | None = None,
  ) -> ModelConfig:
    """Returns a config with what every family's config.json says alike.

    Args:
      layers: of the decoder.
      tied: published default of `tie_word_embeddings`.
      norm, embedding_scale, residual_scale, logit_scale, logit_softcap,
        positions, encoder: as in `ModelConfig`.
    """
    return ModelConfig(
      vocab_size=self.need('vocab_size'),
      width=self.need('hidden_size', 'n_embd', 'd_model', 'n_embed'),
      layers=tuple(layers),
      norm=norm,
      tied=bool(self.get('tie_word_embeddings', tied)),
      embedding_scale=embedding_scale,
      residual_scale=residual_scale,
      logit_scale=logit_scale,
      logit_softcap=logit_softcap,
      positions=positions,
      encoder=encoder,
      dtype=self.dtype(),
    )
