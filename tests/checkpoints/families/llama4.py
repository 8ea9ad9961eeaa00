"""What tests know of llama4."""

from typing import Any

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope

# The smallest vision tower that transformers builds.
TOWER = {
  'hidden_size': 8,
  'intermediate_size': 8,
  'num_attention_heads': 2,
  'num_hidden_layers': 1,
  'image_size': 28,
  'patch_size': 14,
  'vision_output_dim': 8,
  'projector_input_dim': 8,
  'projector_output_dim': 8,
}


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  chunk = d.pick(5, 9, 8192, None)
  rope = d.rope(config['head_dim'], base=5e5)
  if rope['rope_type'] == 'llama3':  # published: no ramp
    rope['low_freq_factor'] = d.pick(1.0, rope['high_freq_factor'])
  kinds = [d.pick('chunked_attention', 'full_attention') for _ in range(3)]
  text = config | {
    'model_type': 'llama4_text',
    'num_hidden_layers': 3,
    'attention_bias': d.flag(),
    'use_qk_norm': d.flag(),
    'attention_chunk_size': chunk,
    'layer_types': d.pick(None, kinds if chunk else None),
    'attn_temperature_tuning': d.flag(),
    'attn_scale': d.pick(0.1, 0.7),
    'floor_scale': d.pick(1, 4, 8192),
    'intermediate_size_mlp': d.pick(20, 36),
    'num_local_experts': d.pick(3, 4),
    'num_experts_per_tok': d.pick(1, 1, 2, 3),
    'rope_parameters': rope,
    **d.pick(
      {'no_rope_layers': [d.pick(0, 1) for _ in range(3)]},
      {'no_rope_layers': []},
      {'no_rope_layer_interval': 2},
      {'no_rope_layer_interval': 3},
    ),
    **d.pick(
      {'moe_layers': d.pick([], [1], [0, 2])},
      {'interleave_moe_layer_step': 1},
      {'interleave_moe_layer_step': 2},
    ),
  }
  has_tower = not d.rng.integers(4)
  return _with_tower(text) if has_tower else text


def _with_tower(text: Config) -> dict[str, Any]:
  kind = {'model_type': 'llama4'}
  return kind | {'text_config': text, 'vision_config': TOWER}


FACTS = Facts(
  draw=draw,
  cases={
    'llama4': Case(
      BASE
      | {
        'model_type': 'llama4_text',
        'num_hidden_layers': 3,
        'attention_bias': True,
        'tie_word_embeddings': False,
        'attention_chunk_size': 5,
        'floor_scale': 4,
        'intermediate_size': 11,
        'intermediate_size_mlp': 19,
        'interleave_moe_layer_step': 2,
        'no_rope_layer_interval': 2,
        'num_local_experts': 4,
        'num_experts_per_tok': 2,
        # As published, the ramp of Llama 3 has no width.
        'rope_parameters': rope(
          'llama3',
          5e5,
          factor=16.0,
          low_freq_factor=1.0,
          high_freq_factor=1.0,
          original_max_position_embeddings=12,
        ),
      },
      bytes_per_token=432,  # 3 * (3*6 + 3*6) * 4
      seed=2403,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'head_dim': 128,
    'attention_chunk_size': 8192,
    'attn_temperature_tuning': True,
    'attn_scale': 0.1,
    'floor_scale': 8192,
    'use_qk_norm': True,
    'no_rope_layer_interval': 4,
    'interleave_moe_layer_step': 1,
    'intermediate_size_mlp': 16384,
    'num_local_experts': 16,
    'num_experts_per_tok': 1,
    'rms_norm_eps': 1e-5,
    'attention_bias': False,
    'tie_word_embeddings': False,
  },
  model_type='llama4_text',
  published={
    'llama-4-scout-17b-16e': Figures(
      elements='2*8*128',
      layers=48,
      bytes_per_token=196608,
      window_layers=36,
      window=8192,
      parameters=107769861120,
      source='safetensors of the whole model count 108641793536, its vision '
      'tower and projector 871932416 of them',
    ),
    'llama-4-maverick-17b-128e': Figures(
      elements='2*8*128',
      layers=48,
      bytes_per_token=196608,
      window_layers=36,
      window=8192,
      parameters=400711848960,
      source='safetensors of the whole model count 401583781376, its vision '
      'tower and projector 871932416 of them',
    ),
  },
)
