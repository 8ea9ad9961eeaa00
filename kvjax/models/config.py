"""What a model is: one frozen, hashable tree of choices."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields, check_type, is_whole
from kvjax.attention.bias import RelativeBias
from kvjax.attention.grouped import Grouped
from kvjax.attention.variant import Variant
from kvjax.display import Display, Displayed, compact
from kvjax.layers.norm import Norm
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP


@dataclasses.dataclass(frozen=True)
class Layer:
  """One decoder or encoder layer.

  Attributes:
    attention: over the tokens of the sequence.
    mlp: dense, or experts.
    cross: attention to the encoder's output; None for none.
    norms: 'pre' normalises the input of each half, 'post' its output
      (OLMo-2), 'both' does both (Gemma 2).
    parallel: attention and MLP read the same input and are added together
      (GPT-J, Falcon): 'shared' for one norm, 'separate' for one each.
  """

  attention: Variant
  mlp: MLP | Experts
  cross: Grouped | None = None
  norms: str = 'pre'
  parallel: str | None = None

  def __post_init__(self):
    check_fields(self)
    if self.norms not in ('pre', 'post', 'both'):
      raise ValueError(
        f"norms={self.norms!r} must be one of 'pre', 'post', 'both'."
      )
    if self.parallel not in (None, 'shared', 'separate'):
      raise ValueError(
        f"parallel={self.parallel!r} must be None, 'shared' or 'separate'."
      )


_MOST_LAYERS = 4  # different ones in a `repr`


def _distinct(layers: Sequence[Layer]) -> dict[Layer, str]:
  """Returns the different layers, and where they are: '0-2, 5'."""
  places: dict[Layer, list[int]] = {}
  for index, layer in enumerate(layers):
    places.setdefault(layer, []).append(index)
  return {layer: _spans(found) for layer, found in places.items()}


def _spans(numbers: Sequence[int]) -> str:
  """Returns ascending numbers as ranges; of many only the first ones."""
  starts = [n for n in numbers if n - 1 not in numbers]
  ends = [n for n in numbers if n + 1 not in numbers]
  spans = [
    f'{a}' if a == b else f'{a}-{b}' for a, b in zip(starts, ends, strict=True)
  ]
  more = f', ... ({len(numbers)} in all)' if len(spans) > 4 else ''
  return ', '.join(spans[:4]) + more


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A bidirectional stack that reads a source once.

  Attributes:
    layers: each with non-causal attention.
    features: width of a source frame (log-mel bins), read by two
      convolutions, the second of stride 2 (Whisper, arXiv 2212.04356); None
      for a source of token ids that share the decoder's embedding (T5).
    positions: rows of a learned (or stored) position table; 0 for none.
    norm: of its layers and of its output.
  """

  layers: tuple[Layer, ...]
  features: int | None = None
  positions: int = 0
  norm: Norm = Norm()

  def __post_init__(self):
    check_fields(self, at_least={'features': 1, 'positions': 0})


@dataclasses.dataclass(frozen=True, repr=False)
class ModelConfig(Displayed):
  """A decoder (with an encoder or without) whose layers may differ.

  Attributes:
    vocab_size: V.
    width: D.
    layers: from the first to the last.
    norm: of all layers and of the output.
    tied: the head is the embedding transposed.
    head_bias: the head has a bias.
    embedding_scale: multiplies embeddings.
    residual_scale: multiplies what a layer's halves add.
    logit_scale: multiplies logits.
    logit_softcap: bound of the logits; None for none.
    positions: rows of a learned position table (GPT-2); 0 for none.
    encoder: None for a decoder alone.
    refused_ids: ids that no call takes: they stand for an image or a video,
      which the model reads by a part that kvjax does not have.
    dtype: of parameters and activations, by name.
  """

  vocab_size: int
  width: int
  layers: tuple[Layer, ...]
  norm: Norm = Norm()
  tied: bool = False
  head_bias: bool = False
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  logit_scale: float = 1.0
  logit_softcap: float | None = None
  positions: int = 0
  encoder: Encoder | None = None
  refused_ids: tuple[int, ...] = ()
  dtype: str = 'float32'

  def __post_init__(self):
    sizes = {'vocab_size': 1, 'width': 1, 'positions': 0, 'refused_ids': 0}
    if isinstance(self.layers, Iterable):
      object.__setattr__(self, 'layers', tuple(self.layers))
    check_fields(self, at_least=sizes, above={'logit_softcap': 0})
    if not self.layers:
      raise ValueError('layers=() is empty: a model has at least one layer.')
    object.__setattr__(self, 'dtype', floating_dtype(self.dtype).name)
    for index in range(len(self.layers)):
      self._check_sharing(index)
    # A step hashes its config on every call: once is enough.
    fields = tuple(getattr(self, f.name) for f in dataclasses.fields(self))
    object.__setattr__(self, '_hash', hash(fields))

  def display(self) -> Display:
    stacks = {'': self.layers}
    if self.encoder is not None:
      stacks['encoder '] = self.encoder.layers
    rows = [
      [stack + places, compact(layer)]
      for stack, layers in stacks.items()
      for layer, places in _distinct(layers).items()
    ]
    rest = [
      f'{f.name} = {compact(getattr(self, f.name))}'
      for f in dataclasses.fields(self)
      if f.name not in ('layers', 'encoder')
      and getattr(self, f.name) != f.default
    ]
    title = f'A model of {len(self.layers)} layers, {", ".join(rest)}'
    return Display(title, ('layers', 'each'), rows, ('layers', 'each'))

  def __repr__(self) -> str:
    return self.display().text(_MOST_LAYERS)

  def __hash__(self) -> int:
    return self._hash  # pyright: ignore[reportAttributeAccessIssue]

  def _check_sharing(self, index: int) -> None:
    source = self.layers[index].attention.shared_from
    if source is None:
      return
    if not 0 <= source < index:
      raise ValueError(
        f'Layer {index} has shared_from={source}: it can only share the '
        'keys and values of an earlier layer.'
      )
    owner, reader = self.layers[source].attention, self.layers[index].attention
    if owner.shared_from is not None:
      raise ValueError(
        f'Layer {index} has shared_from={source}, which owns none itself: '
        f'name its owner, {owner.shared_from}.'
      )
    if not isinstance(owner, Grouped) or not isinstance(reader, Grouped):
      raise ValueError(
        f'Layer {index} shares keys and values of layer {source}, and one '
        'of the two is of another kind. Both must be Grouped.'
      )
    wanted = dataclasses.replace(reader, shared_from=None).streams()
    for name, stream in owner.streams().items():
      if wanted[name] != stream:
        raise ValueError(
          f'Layer {index} shares keys and values of layer {source}, but '
          f'its {name} has {wanted[name].heads} heads of width '
          f'{wanted[name].width}, not {stream.heads} of width {stream.width}. '
          'Give both layers the same.'
        )

  def stream_layer(self, index: int) -> int:
    """Returns the layer whose streams layer `index` reads."""
    source = self.layers[index].attention.shared_from
    return index if source is None else source


def check_config(config: Any) -> None:
  """Raises ValueError for what is no config."""
  check_type(
    'config',
    config,
    ModelConfig,
    'give a ModelConfig. Arguments come in the order config, params, cache, '
    'tokens.',
  )


def check_layers(config: ModelConfig, layers: Any) -> tuple[int, ...]:
  """Returns indices of layers as a tuple; ValueError for what is none."""
  indices = tuple(layers) if isinstance(layers, Iterable) else None
  count = len(config.layers)
  if indices is None or not all(
    is_whole(index, 0, count - 1) for index in indices
  ):
    raise ValueError(
      f'attention_layers={layers!r} must be indices in [0, {count}), the '
      'layers of the model.'
    )
  return indices


def relative_bias(layers: tuple[Layer, ...]) -> tuple[int, int] | None:
  """Returns the shape of the stack's shared relative table, if it has one."""
  for layer in layers:
    if isinstance(layer.attention.bias, RelativeBias):
      return layer.attention.bias.buckets, layer.attention.num_heads
  return None


def dtype_of(config: ModelConfig, dtype: Any = None) -> Any:
  """Returns `dtype`, or the config's for None; ValueError for integers."""
  return floating_dtype(config.dtype if dtype is None else dtype)


def floating_dtype(dtype: Any) -> Any:
  """Returns a dtype; ValueError for integers, unsigned and tiny floats."""
  dtype = named_dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f'dtype={dtype} is no floating type. For eight-bit codes with scales '
      'give codec=kvjax.Int8().'
    )
  if jnp.finfo(dtype).bits < 8:
    raise ValueError(
      f'dtype={dtype} has {jnp.finfo(dtype).bits} bits; a floating dtype '
      'needs 8 or more. For smaller caches give a codec: '
      'codec=kvjax.Int8().'
    )
  if float(jnp.finfo(dtype).min) >= 0:  # such a type may have no 0 itself
    raise ValueError(
      f'dtype={dtype} has no negative numbers: streams would be NaN. Give '
      'float32, bfloat16 or float16, say.'
    )
  return dtype


def named_dtype(dtype: Any, argument: str = 'dtype') -> Any:
  """Returns a dtype; ValueError for what is none, or would be cut short."""
  try:
    named = jnp.dtype(dtype)
  except TypeError:
    raise ValueError(
      f'{argument}={dtype!r} is no dtype. Give one by name: float32, '
      'bfloat16 or float16, say.'
    ) from None
  kept = jax.dtypes.canonicalize_dtype(named)
  if kept != named:
    raise ValueError(
      f'{argument}={named} would be {kept}: set jax_enable_x64, or give that.'
    )
  return named
