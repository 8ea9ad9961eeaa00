"""GLM-4.5 (arXiv 2508.06471): GQA that rotates half of a head, experts.

Biases on q, k and v only; routing is that of DeepSeek-V3. Layers beyond
`num_hidden_layers` (multi-token prediction) are left out.
"""

from kvjax.checkpoints.families.deepseek_v3 import sigmoid_experts
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import EXPERTS, HEAD_NORMS, LLAMA, SHARED
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GLM-4.5 config.json."""
  norm = settings.rms_norm(1e-5)
  attention = grouped(
    settings,
    kv_heads=8,
    rotary=rotary(settings, settings.head_width(), partial=0.5),
    projection_bias=settings.get('attention_bias', False),
    qk_norm=norm if settings.get('use_qk_norm', False) else None,
  )
  dense = settings.get('first_k_dense_replace', 1)
  sparse = sigmoid_experts(settings, scale=1.0)
  layers = [
    Layer(attention, settings.mlp() if i < dense else sparse)
    for i in range(settings.need('num_hidden_layers'))
  ]
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(
  config, LLAMA + HEAD_NORMS + EXPERTS + SHARED, beyond_layers=True
)
