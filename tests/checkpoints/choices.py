"""Choices that configs of many families share, drawn by a generator."""

from typing import Any

import numpy as np

Config = dict[str, Any]


class Draw:
  """Choices of one config, by a NumPy generator."""

  def __init__(self, rng: np.random.Generator):
    self.rng = rng

  def pick(self, *options: Any) -> Any:
    return options[int(self.rng.integers(len(options)))]

  def flag(self) -> bool:
    return bool(self.rng.integers(2))

  def rope(self, *kinds: str, pairs: int = 0, base: float = 1e4) -> Config:
    """Returns rope_parameters of one of some types."""
    kind = self.pick(*kinds)
    found = {'rope_type': kind, 'rope_theta': self.pick(base, 500.0, 5e5)}
    original = {'original_max_position_embeddings': self.pick(8, 12, 32)}
    if kind in ('linear', 'dynamic'):
      found |= {'factor': self.pick(2.0, 3.5)}
    if kind == 'llama3':
      found |= original | {
          'factor': self.pick(4.0, 8.0), 'low_freq_factor': 1.0,
          'high_freq_factor': self.pick(2.0, 4.0),
      }  # fmt: skip
    if kind == 'yarn':
      found |= original | {'factor': self.pick(4.0, 40.0)}
      found |= self.pick(
          {},
          {'attention_factor': 1.3},
          {'beta_fast': 16.0, 'beta_slow': 2.0, 'truncate': False},
          {'mscale': 0.7, 'mscale_all_dim': 0.9},
          {'mscale': 1.0, 'mscale_all_dim': 1.0},
      )
    if kind == 'longrope':
      found |= original
      for key in ('short_factor', 'long_factor'):
        found[key] = [float(x) for x in self.rng.uniform(1, 6, pairs)]
      found |= self.pick({}, {'attention_factor': 1.2})
    return found

  def decoder(self, *, ties: bool = False) -> Config:
    """Returns what most decoders have; hidden size a multiple of the heads."""
    kv, groups = self.pick(1, 2, 3), self.pick(1, 2, 3)
    heads = kv * groups
    return {
        'vocab_size': 97,
        'hidden_size': heads * 4 * self.pick(1, 2),
        'intermediate_size': self.pick(28, 44),
        'num_hidden_layers': 2,
        'num_attention_heads': heads,
        'num_key_value_heads': kv,
        'max_position_embeddings': self.pick(16, 64),
        'rms_norm_eps': self.pick(1e-6, 1e-5),
        'tie_word_embeddings': self.flag() if ties else False,
        'pad_token_id': None,
        'bos_token_id': None,
        'eos_token_id': None,
    }

  def routing(self) -> Config:
    groups = self.pick(1, 2, 3)
    return {
        'n_routed_experts': groups * self.pick(2, 3, 4),
        'n_shared_experts': self.pick(1, 2),
        'num_experts_per_tok': 2,
        'moe_intermediate_size': self.pick(12, 20),
        'n_group': groups,
        'topk_group': self.pick(1, groups),
        'norm_topk_prob': self.flag(),
        'routed_scaling_factor': self.pick(1.0, 2.5),
        'first_k_dense_replace': self.pick(0, 1),
    }

  def latent(self) -> Config:
    heads = self.pick(1, 3, 4)
    return self.decoder() | {
        'num_attention_heads': heads,
        'num_key_value_heads': heads,
        'hidden_size': self.pick(24, 36),
        'q_lora_rank': self.pick(None, 12, 20),
        'kv_lora_rank': self.pick(10, 16),
        'qk_nope_head_dim': self.pick(6, 8),
        'qk_rope_head_dim': self.pick(4, 8),
        'v_head_dim': self.pick(6, 10),
        'attention_bias': self.flag(),
    }
