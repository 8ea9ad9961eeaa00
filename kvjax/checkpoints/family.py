"""What a model family is to the loader: a config and a table."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import TableRow, group_by_place
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import param_shapes
from kvjax.tree_paths import leaves_by_path


@dataclasses.dataclass(frozen=True)
class Constant:
  """A tensor of one number that a model with some param has besides.

  Attributes:
    name: published, with `{i}`.
    value: the number.
    place: of the param, with `{i}`.
  """

  name: str
  value: float
  place: str


@dataclasses.dataclass(frozen=True)
class Family:
  """How one published family is read.

  Attributes:
    config: from its config.json.
    rows: its tensors against params; the union over all its configurations.
      Empty where a param's path is the name of its tensor.
    prefix: of the decoder's tensors, absent from some checkpoints (GPT-2).
    ignored: patterns (regular expressions) of tensors that hold no parameter:
      rotary tables and masks saved as buffers, parts that are not the decoder.
    beyond_layers: the checkpoint may hold layers after the last of
      `num_hidden_layers` (multi-token prediction), which are left out.
    head: of a family whose config.json does not say whether there is a head
      (T5): the name of the tensor that tells.
    copies: tensors that repeat another where weights are tied, name against
      name; they must be equal.
    constants: tensors that are no parameters and the same in every checkpoint.
    text: of a model that reads images, too, and of which the decoder is read:
      the `model_type` of a decoder alone.
  """

  config: Callable[[Settings], ModelConfig]
  rows: tuple[TableRow, ...]
  prefix: str = 'model.'
  ignored: tuple[str, ...] = (r'.*\.rotary_emb\.inv_freq',)
  beyond_layers: bool = False
  head: str | None = None
  copies: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {'lm_head.weight': 'model.embed_tokens.weight'}
  )
  constants: tuple[Constant, ...] = ()
  text: str | None = None

  def constants_of(self, place: str) -> dict[str, float]:
    """Returns the constants that go with a param, by published name."""
    pattern = re.sub(r'\.\d+\.', '.{i}.', place)
    layer = ''.join(re.findall(r'\.(\d+)\.', place)[:1])
    return {
      constant.name.replace('{i}', layer): constant.value
      for constant in self.constants
      if constant.place == pattern
    }

  def rows_by_place(self, config: ModelConfig) -> dict[str, list[TableRow]]:
    """Returns the rows of each place, one for each published spelling."""
    return group_by_place(
      self.rows
      or [
        TableRow(place, tuple(map(str, param.shape)), place)
        for place, param in leaves_by_path(param_shapes(config)).items()
      ]
    )


def rename_rows(
  rows: tuple[TableRow, ...], old: str, new: str
) -> tuple[TableRow, ...]:
  """Returns rows; published names that begin with `old` begin with `new`."""
  return tuple(
    dataclasses.replace(row, name=new + row.name.removeprefix(old))
    if row.name.startswith(old)
    else row
    for row in rows
  )


def layer_sizes(config: ModelConfig, layer: Layer) -> dict[str, int]:
  """Returns the sizes of `kvjax.checkpoints.table`; 0 for what is absent."""
  sizes = {
    'V': config.vocab_size,
    'D': config.width,
    'positions': config.positions,
  }
  if config.encoder is not None:
    sizes['source_positions'] = config.encoder.positions
    sizes['features'] = config.encoder.features or 0
  # A table names the sizes of every variant and MLP; a size that the class of
  # this layer does not know is 0 (or 1 kv head).
  attention: Any = layer.attention
  mlp: Any = layer.mlp
  heads = attention.num_heads
  kv_heads = getattr(attention, 'num_kv_heads', 1)
  shared = getattr(mlp, 'shared', None)
  return sizes | {
    'N': heads,
    'K': kv_heads,
    'G': heads // kv_heads,
    'H': attention.key_width,
    'E': attention.value_width or attention.key_width,
    'R': getattr(attention, 'latent_width', 0),
    'P': attention.rotary.width if attention.rotary else 0,
    'F': mlp.hidden,
    'query_rank': getattr(attention, 'query_rank', None) or 0,
    'buckets': getattr(attention.bias, 'buckets', 0),
    'experts': getattr(mlp, 'num_experts', 0),
    'shared_hidden': shared.hidden if shared else 0,
  }
