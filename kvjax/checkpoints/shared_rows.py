"""Rows that several families share: the names of most published decoders.

The file of a family adds these rows and the rows of that family alone.
"""

from kvjax.checkpoints.table import parse_table

# A LayerNorm may have biases; an RMSNorm has none.
ENDS = parse_table("""
  model.embed_tokens.weight   V D   embedding
  model.norm.weight           D     norm.weight
  model.norm.bias             D     norm.bias
  lm_head.weight              V D   head
""")

NORMS = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    input_layernorm.weight            D   attention_norm.weight
    input_layernorm.bias              D   attention_norm.bias
    post_attention_layernorm.weight   D   mlp_norm.weight
    post_attention_layernorm.bias     D   mlp_norm.bias
""")

# Gemma 2 has four norms a layer; OLMo-2 has only the two after each half.
POST_NORMS = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    post_attention_layernorm.weight     D   attention_post_norm.weight
    post_feedforward_layernorm.weight   D   mlp_post_norm.weight
""")
FOUR_NORMS = POST_NORMS + parse_table("""
  model.layers.{i}.*   layers.{i}.*
    input_layernorm.weight             D   attention_norm.weight
    pre_feedforward_layernorm.weight   D   mlp_norm.weight
""")

GROUPED = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_proj.weight   N*H D   query
    k_proj.weight   K*H D   key
    v_proj.weight   K*H D   value
    o_proj.weight   D N*H   output
    q_proj.bias     N*H     query_bias
    k_proj.bias     K*H     key_bias
    v_proj.bias     K*H     value_bias
    o_proj.bias     D       output_bias
""")

HEAD_NORMS = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_norm.weight   H   query_norm.weight
    k_norm.weight   H   key_norm.weight
""")

# One weight has the queries, the key and the value of each kv head in turn.
FUSED_BY_HEAD = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    query_key_value.weight   K*(G+2)*H D   query         queries
    query_key_value.weight   K*(G+2)*H D   key           keys
    query_key_value.weight   K*(G+2)*H D   value         values
    query_key_value.bias     K*(G+2)*H     query_bias    queries
    query_key_value.bias     K*(G+2)*H     key_bias      keys
    query_key_value.bias     K*(G+2)*H     value_bias    values
    dense.weight             D N*H         output
    dense.bias               D             output_bias
""")

# With a rank for queries, `q_proj` is two projections and a norm.
LATENT = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_proj.weight               N*(H+P) D            query
    q_a_proj.weight             query_rank D         query_down
    q_a_proj.bias               query_rank           query_down_bias
    q_a_layernorm.weight        query_rank           query_norm.weight
    q_b_proj.weight             N*(H+P) query_rank   query
    kv_a_proj_with_mqa.weight   R+P D                latent
    kv_a_proj_with_mqa.bias     R+P                  latent_bias
    kv_a_layernorm.weight       R                    latent_norm.weight
    kv_b_proj.weight            N*(H+E) R            up_key          up_key
    kv_b_proj.weight            N*(H+E) R            up_value        up_value
    o_proj.weight               D N*E                output
    o_proj.bias                 D                    output_bias
""")

GATED = parse_table("""
  model.layers.{i}.mlp.*   layers.{i}.mlp.*
    gate_proj.weight   F D   gate
    up_proj.weight     F D   up
    down_proj.weight   D F   down
    gate_proj.bias     F     gate_bias
    up_proj.bias       F     up_bias
    down_proj.bias     D     down_bias
""")

EXPERTS = parse_table("""
  model.layers.{i}.mlp.*   layers.{i}.experts.*
    gate.weight                    experts D   router
    gate.e_score_correction_bias   experts     correction
    experts.{e}.gate_proj.weight   F D         gate
    experts.{e}.up_proj.weight     F D         up
    experts.{e}.down_proj.weight   D F         down
""")

SHARED = parse_table("""
  model.layers.{i}.mlp.shared_experts.*   layers.{i}.experts.shared.*
    gate_proj.weight   shared_hidden D   gate
    up_proj.weight     shared_hidden D   up
    down_proj.weight   D shared_hidden   down
    gate_proj.bias     shared_hidden     gate_bias
    up_proj.bias       shared_hidden     up_bias
    down_proj.bias     D                 down_bias
""")

LLAMA = ENDS + NORMS + GROUPED + GATED
