"""Choices that configs of many families share, drawn by a generator."""

from typing import Any

import numpy as np

from kvjax.checkpoints.hf_config import ACTIVATIONS
from kvjax.checkpoints.rope import KNOWN

Config = dict[str, Any]

ROPES = tuple(KNOWN)
SPELLED = tuple(ACTIVATIONS)
# Where published code reads `head_dim` without a fallback for null.
PLAIN_ROPES = 'default', 'linear', 'llama3'


class Draw:
  """Choices of one config, by a NumPy generator."""

  def __init__(self, rng: np.random.Generator):
    self.rng = rng

  def pick(self, *options: Any) -> Any:
    return options[int(self.rng.integers(len(options)))]

  def flag(self) -> bool:
    return bool(self.rng.integers(2))

  def rope(
    self, width: int, *kinds: str, base: float = 1e4, share: float = 1.0
  ) -> Config:
    """Returns rope_parameters of one of some types, by default of any.

    Args:
      width: of a head, or of its rotated part.
      kinds: types to draw from.
      base: published default of `rope_theta`.
      share: of the width that is rotated.
    """
    kind = self.pick(*(kinds or ROPES))
    found = {'rope_type': kind, 'rope_theta': self.pick(base, 500.0, 5e5)}
    scaled = {
      'default': dict,
      'linear': self._factor,
      'dynamic': self._factor,
      'llama3': self._llama3,
      'yarn': self._yarn,
      'longrope': lambda: self._longrope(int(width * share) // 2),
    }
    return found | scaled[kind]()

  def partial_rope(self, width: int, *shares: float) -> Config:
    """Returns rope_parameters that rotate one of some shares of a head."""
    share = self.pick(*shares)
    # Dynamic scaling divides by the rotated width less 2.
    kinds = [k for k in ROPES if k != 'dynamic' or int(width * share) > 2]
    found = self.rope(width, *kinds, share=share)
    return found | {'partial_rotary_factor': share}

  def _factor(self) -> Config:
    return {'factor': self.pick(2.0, 3.5)}

  def _original(self) -> Config:
    """Without one, `max_position_embeddings` is it."""
    key = 'original_max_position_embeddings'
    return self.pick({}, {key: 8}, {key: 12}, {key: 32})

  def _llama3(self) -> Config:
    return self._original() | {
      'factor': self.pick(4.0, 8.0),
      'low_freq_factor': self.pick(1.0, 1.5),
      'high_freq_factor': self.pick(2.0, 4.0),
    }

  def _yarn(self) -> Config:
    return (
      self._original()
      | {'factor': self.pick(4.0, 40.0)}
      | self.pick(
        {},
        {'attention_factor': 1.3},
        {'beta_fast': 16.0, 'beta_slow': 2.0, 'truncate': False},
        {'mscale': 0.7, 'mscale_all_dim': 0.9},
        {'mscale': 1.0, 'mscale_all_dim': 1.0},
        {'mscale_all_dim': 0.8},
      )
    )

  def _longrope(self, pairs: int) -> Config:
    found = self._original()
    for key in ('short_factor', 'long_factor'):
      found[key] = [float(x) for x in self.rng.uniform(1, 6, pairs)]
    found |= self.pick({}, {'factor': 4.0})
    return found | self.pick({}, {'attention_factor': 1.2})

  def decoder(self, *, ties: bool = True) -> Config:
    """Returns what most decoders have; hidden size a multiple of the heads."""
    kv, groups = self.pick(
      (1, 1), (1, 3), (2, 1), (2, 3), (3, 2), (4, 1), (4, 2), (8, 1)
    )
    heads = kv * groups
    return {
      'vocab_size': 97,
      'hidden_size': heads * 4 * self.pick(1, 2),
      'intermediate_size': self.pick(28, 44),
      'num_hidden_layers': 2,
      'num_attention_heads': heads,
      'num_key_value_heads': kv,
      'hidden_act': self.pick('silu', *SPELLED),
      'max_position_embeddings': self.pick(16, 64),
      'rms_norm_eps': self.pick(1e-6, 1e-5, 1e-3),
      'tie_word_embeddings': self.flag() if ties else False,
      'pad_token_id': None,
      'bos_token_id': None,
      'eos_token_id': None,
    }

  def routing(self) -> Config:
    groups, size = self.pick(1, 2, 3, 8), self.pick(2, 3, 4)
    kept = self.pick(1, max(1, groups // 2), groups)
    return {
      'n_routed_experts': groups * size,
      'n_shared_experts': self.pick(1, 2),
      'num_experts_per_tok': min(self.pick(1, 2, 3), kept * size),
      'moe_intermediate_size': self.pick(12, 20),
      'n_group': groups,
      'topk_group': kept,
      'norm_topk_prob': self.flag(),
      'routed_scaling_factor': self.pick(1.0, 1.8, 2.5),
      'first_k_dense_replace': self.pick(0, 1, 2),
    }

  def latent(self) -> Config:
    heads = self.pick(1, 3, 4)
    config = self.decoder() | {
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
    rope = self.rope(config['qk_rope_head_dim'])
    if rope['rope_type'] == 'longrope':  # published MLA asks for its factor
      rope.setdefault('factor', 4.0)
    return config | {'rope_parameters': rope}


def head_width(config: Config) -> int:
  """Returns `head_dim`, or hidden size over heads."""
  return config.get('head_dim') or (
    config['hidden_size'] // config['num_attention_heads']
  )
