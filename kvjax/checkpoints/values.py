"""What the values of a config.json look like, whatever the family.

Checked once, before any of them is used: a text where a number belongs would
otherwise end in arithmetic that names no key. null is always allowed, and
means what the family says of it.
"""

from collections.abc import Mapping
from typing import Any

WHOLE = """
  d_ff d_kv d_model decoder_attention_heads decoder_ffn_dim decoder_layers
  decoder_sparse_step dim_model_base encoder_attention_heads encoder_ffn_dim
  encoder_layers ffn_hidden_size first_k_dense_replace head_dim hidden_size
  intermediate_size kv_lora_rank max_position_embeddings max_source_positions
  max_target_positions max_window_layers moe_intermediate_size n_ctx n_embd
  n_embed n_group n_head n_inner n_layer n_positions n_routed_experts
  n_shared_experts no_rope_layer_interval num_attention_heads
  num_decoder_layers num_experts num_experts_per_tok num_heads
  num_hidden_layers num_key_value_heads num_kv_heads num_layers
  num_ln_in_parallel_attn num_local_experts num_mel_bins
  original_max_position_embeddings q_lora_rank qk_nope_head_dim
  qk_rope_head_dim relative_attention_max_distance
  relative_attention_num_buckets sliding_window sliding_window_pattern
  topk_group v_head_dim vocab_size
"""
NUMBER = """
  attention_factor attn_logit_softcapping beta_fast beta_slow factor
  final_logit_softcapping high_freq_factor layer_norm_eps layer_norm_epsilon
  logit_scale low_freq_factor mscale mscale_all_dim partial_rotary_factor
  query_pre_attn_scalar rms_norm_eps rope_local_base_freq rope_theta
  routed_scaling_factor scale_depth scale_emb swiglu_alpha swiglu_limit
"""
SWITCH = """
  alibi attention_bias bias is_gated_act mlp_bias multi_query
  new_decoder_architecture norm_topk_prob parallel_attn rope_interleave
  scale_attn_by_inverse_layer_idx scale_attn_weights scale_decoder_outputs
  tie_word_embeddings truncate use_qk_norm use_sliding_window
"""
TEXT = """
  activation activation_function dense_act_fn feed_forward_proj hidden_act
  hidden_activation model_type scoring_func topk_method
"""
LIST = """
  layer_types long_factor mlp_layer_types mlp_only_layers no_rope_layers
  short_factor
"""
OBJECT = 'quantization_config rope_parameters rope_scaling text_config'

Types = tuple[type, ...]
RULES: tuple[tuple[str, str, Types], ...] = (
  (WHOLE, 'a whole number', (int,)),
  (NUMBER, 'a number', (int, float)),
  (SWITCH, 'true or false', (bool,)),
  (TEXT, 'a text', (str,)),
  (LIST, 'a list', (list, tuple)),
  (OBJECT, 'an object', (Mapping,)),
)
KINDS: dict[str, tuple[str, Types]] = {
  key: (rule, types) for keys, rule, types in RULES for key in keys.split()
}


def check_values(values: Mapping[str, Any]) -> None:
  """Raises ValueError for a value that is not of its key's kind, by name."""
  for key, value in values.items():
    if key not in KINDS or value is None:
      continue
    rule, types = KINDS[key]
    # To Python true and false are whole numbers as well.
    if not isinstance(value, types) or (bool in types) != isinstance(
      value, bool
    ):
      raise ValueError(f'{key}={value!r} of config.json must be {rule}.')
