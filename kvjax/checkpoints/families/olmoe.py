"""OLMoE (arXiv 2409.02060): experts in every layer, q and k normed whole.

`clip_qkv` bounds queries, keys and values after that norm.
"""

from kvjax.checkpoints.families.olmo2 import JOINT_NORMS
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, EXPERTS, GROUPED, NORMS
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an OLMoE config.json."""
  settings.refuse('sliding_window')
  norm = settings.rms_norm(1e-5)
  attention = grouped(
    settings,
    bias=settings.get('attention_bias', False),
    qk_norm=norm,
    qk_norm_joint=True,
    clip=settings.raw('clip_qkv'),
  )
  experts = Experts(
    settings.get('num_experts', settings.get('num_local_experts', 64)),
    settings.get('num_experts_per_tok', 8),
    settings.need('intermediate_size'),
    settings.activation('hidden_act'),
    renormalize=settings.get('norm_topk_prob', False),
  )
  layers = [Layer(attention, experts)] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(config, ENDS + NORMS + GROUPED + EXPERTS + JOINT_NORMS)
