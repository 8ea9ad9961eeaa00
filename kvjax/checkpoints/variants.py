"""Attention and experts that several families share, from config.json."""

from typing import Any

from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary, score_scale
from kvjax.layers.norm import Norm
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility


def grouped(
  settings: Settings,
  *,
  width: int | None = None,
  kv_heads: int | None = None,
  bias: bool = False,
  window: int | None = None,
  chunk: int | None = None,
  **special: Any,
) -> Grouped:
  """Returns the grouped attention of a layer.

  Args:
    settings: of the checkpoint.
    width: of a head; None for `Settings.head_width`.
    kv_heads: published default of `num_key_value_heads`; None for as many as
      query heads.
    bias: of every projection.
    window, chunk: of the layer, if it has one.
    **special: fields of `Grouped` in which the family differs from the rest.
      Without `rotary`, config.json describes the rotation.
  """
  if width is None:
    width = settings.head_width()
  if 'rotary' not in special:
    special['rotary'] = rotary(settings, width)
  fields: dict[str, Any] = {'projection_bias': bias, 'output_bias': bias}
  return Grouped(
    settings.need('num_attention_heads'),
    settings.kv_heads(kv_heads),
    width,
    visibility=Visibility(window=window, chunk=chunk),
    **(fields | special),
  )


def latent(
  settings: Settings, interleaved: bool, query_rank: int = 1536
) -> Latent:
  """Returns MLA as DeepSeek's config.json describes it.

  Args:
    settings: of the checkpoint.
    interleaved: rotary pairs are neighbours.
    query_rank: published default of `q_lora_rank`; null means none.
  """
  key_width = settings.need('qk_nope_head_dim')
  rotary_width = settings.need('qk_rope_head_dim')
  bias = settings.get('attention_bias', False)
  return Latent(
    settings.need('num_attention_heads'),
    settings.need('kv_lora_rank'),
    key_width,
    settings.need('v_head_dim'),
    rotary(settings, rotary_width, interleaved=interleaved),
    query_rank=settings.raw('q_lora_rank', query_rank),
    norm=Norm(1e-6),
    scale=score_scale(settings, key_width + rotary_width),
    projection_bias=bias,
    output_bias=bias,
  )


def shared_experts(
  settings: Settings, *, shared: int = 1, bias: bool = False, **special: Any
) -> Experts:
  """Returns DeepSeek's experts, with the shared expert that every token has.

  Args:
    settings: of the checkpoint.
    shared: published default of `n_shared_experts`, in widths of one expert.
    bias: of the shared expert's projections.
    **special: further fields of `Experts`.
  """
  hidden = settings.need('moe_intermediate_size')
  activation = settings.activation('hidden_act')
  width = hidden * (settings.raw('n_shared_experts', shared) or 0)
  groups, top_groups = special.get('groups', 1), special.get('top_groups', 1)
  if 1 < groups < top_groups:  # one group means none
    raise ValueError(
      f'topk_group={top_groups} of config.json exceeds n_group={groups}: a '
      'token picks from some of the groups or from all.'
    )
  return Experts(
    settings.need('n_routed_experts'),
    settings.need('num_experts_per_tok'),
    hidden,
    activation,
    shared=MLP(width, activation, bias=bias) if width else None,
    **special | {'top_groups': min(top_groups, groups)},
  )
