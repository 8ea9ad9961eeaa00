"""MiniMax-M2 (2025): GQA that rotates half of a head, sigmoid-scored experts.

Queries and keys are normalised over all heads at once. Experts are picked with
a correction bias, and have the published names of Mixtral.
"""

from kvjax.checkpoints.families.mixtral import BLOCK_SPARSE
from kvjax.checkpoints.families.olmo2 import JOINT_NORMS
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts

CORRECTION = parse_table("""
  model.layers.{i}.block_sparse_moe.*   layers.{i}.experts.*
    e_score_correction_bias   experts   correction
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a MiniMax-M2 config.json."""
  settings.refuse('shared_intermediate_size', 'sliding_window')
  settings.only('scoring_func', 'sigmoid')
  settings.only('qk_norm_type', 'per_layer')
  settings.only('use_qk_norm', True)
  settings.only('use_routing_bias', True)
  count = settings.need('num_hidden_layers')
  settings.only('attn_type_list', [1] * count)  # 0 is MiniMax-01's lightning
  width = settings.get('head_dim', 128)
  # Checkpoints give the rotated features; transformers writes their share.
  share = settings.get('rotary_dim', width) / width
  norm = settings.rms_norm(1e-6)
  attention = grouped(
    settings,
    width=width,
    kv_heads=8,
    rotary=rotary(settings, width, base=5e6, partial=share),
    qk_norm=norm,
    qk_norm_joint=True,
  )
  experts = Experts(
    settings.get('num_local_experts', settings.get('num_experts', 256)),
    settings.get('num_experts_per_tok', 8),
    settings.need('intermediate_size'),
    settings.activation('hidden_act'),
    score='sigmoid',
    correction=True,
  )
  layers = [Layer(attention, experts)]
  return settings.model(layers * count, tied=False, norm=norm)


FAMILY = Family(
  config, ENDS + NORMS + GROUPED + JOINT_NORMS + BLOCK_SPARSE + CORRECTION
)
