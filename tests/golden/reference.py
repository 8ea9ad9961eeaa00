"""Builds a tiny published checkpoint with transformers, and what it computes.

Needs torch and transformers, which no test does: this makes the fixtures that
tests read, and what `tests/checkpoints/fuzz_parity.py` compares against.
"""

import copy
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers

BATCH, LENGTH = 2, 21
PROMPT = 13  # tokens before a greedy continuation up to LENGTH
NESTED = 'full_attention', 'sliding_attention'
# Where a family's older config.json spells the rotation in another way.
OLD_ROPE = {
  'gpt_neox': {
    'rope_theta': 'rotary_emb_base',
    'partial_rotary_factor': 'rotary_pct',
  }
}
# Families whose first release had `layer_types` in config.json.
TYPED = 'gpt_oss', 'exaone4', 'olmo3'
# Whose older config.json has no `text_config`, but its keys.
FLAT = 'qwen2_vl', 'qwen2_5_vl'
Logits = Callable[[torch.Tensor], torch.Tensor]
# What every published config.json says, whatever its family's defaults.
SAID = {
  'model_type',
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'moe_intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_experts_per_tok',
  'n_embd',
  'n_head',
  'n_layer',
  'n_positions',
  'd_model',
  'd_kv',
  'd_ff',
  'tie_word_embeddings',
  'scale_decoder_outputs',
}


def write_checkpoint(
  path: pathlib.Path,
  config: Mapping[str, Any],
  *,
  seed: int,
  old: bool = False,
  bare: bool = False,
  shard: str | None = None,
) -> None:
  """Writes config.json, safetensors and reference.npz of one model.

  Args:
    path: directory to make.
    config: keys of its config.json, `model_type` among them.
    seed: of weights and tokens.
    old: rewrite config.json into the older key style.
    bare: leave out of config.json what the family's defaults restore.
    shard: largest shard ('20KB'); None for a single file.
  """
  torch.manual_seed(seed)
  values = dict(config)
  published = transformers.AutoConfig.for_model(
    values.pop('model_type'), **values
  )
  model = _auto(published).from_config(published, attn_implementation='eager')
  randomize(model, seed)
  if (
    published.model_type == 't5' and config.get('tie_word_embeddings') is False
  ):
    head = (
      torch.randn(published.vocab_size, published.d_model)
      * published.d_model**-0.5
    )
    model.lm_head.weight = torch.nn.Parameter(head)
    published.tie_word_embeddings = False
  options = {} if shard is None else {'max_shard_size': shard}
  model.save_pretrained(path, **options)
  for extra in path.glob('generation_config.json'):
    extra.unlink()
  if bare:
    _bare(path / 'config.json')
  if old:
    _age(path / 'config.json', published)
  np.savez(path / 'reference.npz', **reference(path, seed))


def quiet() -> None:
  """Leaves progress and advice of transformers unsaid."""
  transformers.utils.logging.disable_progress_bar()
  transformers.utils.logging.set_verbosity_error()


def _auto(config: Any) -> Any:
  """Returns the auto class of the whole model that a config describes."""
  for auto in (
    transformers.AutoModelForSpeechSeq2Seq,
    transformers.AutoModelForSeq2SeqLM,
    transformers.AutoModelForImageTextToText,
  ):
    if type(config) in auto._model_mapping:
      return auto
  return transformers.AutoModelForCausalLM


def randomize(model: torch.nn.Module, seed: int) -> None:
  """Draws every weight, bias, norm and sink; none is left at zero or one."""
  draw = torch.Generator().manual_seed(seed)
  named = list(model.named_parameters())
  named += [(n, b) for n, b in model.named_buffers() if 'correction_bias' in n]
  with torch.no_grad():
    for name, weight in named:
      noise = torch.randn(weight.shape, generator=draw)
      weight.copy_(_drawn(name, weight, noise))


def _drawn(name: str, weight: torch.Tensor, noise: torch.Tensor):
  if weight.ndim == 1 or 'norm' in name or 'ln_' in name:
    return weight + 0.2 * noise  # ones or zeros, by the family's norm
  if 'relative_attention_bias' in name or name.endswith('sinks'):
    return noise
  if any(part in name for part in ('embed', 'wte', 'wpe', 'shared.weight')):
    return 0.5 * noise
  whole = weight.ndim == 2 or 'conv' in name  # else one matrix an expert
  fan_in = math.prod(weight.shape[1:]) if whole else weight.shape[-1]
  return noise * fan_in**-0.5


def _bare(file: pathlib.Path) -> None:
  """Leaves out every key without which the config stays the same."""
  values = json.loads(file.read_text())
  full = _parsed(values)
  for part in (values, values.get('text_config', {})):
    for key in sorted(part.keys() - SAID):
      value = part.pop(key)
      if _parsed(values) != full:
        part[key] = value
  file.write_text(json.dumps(values, indent=1, sort_keys=True) + '\n')


def _parsed(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns every key of a config.json as transformers understands it."""
  values = copy.deepcopy(dict(values))
  kind = values.pop('model_type')
  try:
    return transformers.AutoConfig.for_model(kind, **values).to_dict()
  except Exception:  # not without this key
    return {}


def _age(file: pathlib.Path, config: Any) -> None:
  """Rewrites config.json as older releases wrote it."""
  values = json.loads(file.read_text())
  if 'dtype' in values:
    values['torch_dtype'] = values.pop('dtype')
  if text := values.get('text_config'):
    _age_keys(text, config)
    if config.model_type in FLAT:
      values = (
        values
        | values.pop('text_config')
        | {'model_type': values['model_type']}
      )
  else:
    _age_keys(values, config)
  file.write_text(json.dumps(values, indent=1, sort_keys=True) + '\n')


def _age_keys(values: dict[str, Any], config: Any) -> None:
  """Spells keys of a decoder as older releases did, in place."""
  rope = values.pop('rope_parameters', None)
  if rope and any(key in rope for key in NESTED):
    values['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
    spelling = 'rope_type'  # Gemma 3 ignores the older one
  else:
    spelling = 'type'
  if rope:
    names = OLD_ROPE.get(config.model_type, {})
    for key in ('rope_theta', 'partial_rotary_factor'):
      if rope.get(key) is not None:
        values[names.get(key, key)] = rope.pop(key)
    kind = rope.pop('rope_type')
    scaled = {spelling: kind} | rope
    plain = kind == 'default' and not rope
    values['rope_scaling'] = None if plain else scaled
  if config.model_type == 't5':
    values['tie_word_embeddings'] = values.pop('scale_decoder_outputs')
    derived = transformers.T5Config(
      feed_forward_proj=config.feed_forward_proj
    ).to_dict()
    for key in ('dense_act_fn', 'is_gated_act'):
      if values.get(key) == derived[key]:  # later releases alone wrote them
        values.pop(key, None)
  if config.model_type not in TYPED:
    values.pop('layer_types', None)
  pattern = values.pop('_sliding_window_pattern', None)
  if pattern is not None:
    values['sliding_window_pattern'] = pattern


def reference(path: pathlib.Path, seed: int) -> dict[str, np.ndarray]:
  """Returns inputs, and what transformers computes of them without a cache.

  `logits` of every position, and `greedy`: the continuation of the first
  `PROMPT` tokens.
  """
  config = transformers.AutoConfig.from_pretrained(path)
  # Falcon's plain path adds ALiBi twice; Gemma 2's fused one drops the softcap.
  plain = not getattr(config, 'alibi', False)
  model = _auto(config).from_pretrained(
    path,
    attn_implementation='eager' if plain else 'sdpa',
    dtype=torch.float32,
  )
  if config.model_type == 'llama4':  # 5.24: the whole one cannot be called
    model = model.language_model
  model.eval()
  model.config._experts_implementation = 'eager'  # the fused ones pad widths
  rng = np.random.default_rng(seed)
  vocab_size = config.get_text_config(decoder=True).vocab_size
  tokens = rng.integers(0, vocab_size, (BATCH, LENGTH))
  inputs, saved = _source(config, rng)
  name = 'decoder_input_ids' if inputs else 'input_ids'

  def logits(ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
      return model(**inputs, **{name: ids}, use_cache=False).logits

  return saved | {
    'tokens': tokens.astype(np.int32),
    'logits': logits(torch.tensor(tokens)).numpy().astype(np.float32),
    'greedy': _greedy(logits, torch.tensor(tokens)).astype(np.int32),
  }


def _greedy(logits: Logits, ids: torch.Tensor) -> np.ndarray:
  """Always of all LENGTH tokens, so that one rotary table serves them."""
  for t in range(PROMPT, LENGTH):
    ids[:, t] = logits(ids)[:, t - 1].argmax(-1)
  return ids[:, PROMPT:].numpy()


def _source(config: Any, rng: np.random.Generator):
  if config.model_type == 't5':
    source = rng.integers(0, config.vocab_size, (BATCH, 11))
    lengths = np.array([11, 7])
    mask = (np.arange(11)[None] < lengths[:, None]).astype(np.int64)
    inputs = {
      'input_ids': torch.tensor(source),
      'attention_mask': torch.tensor(mask),
    }
    return inputs, {'source': source.astype(np.int32), 'lengths': lengths}
  if config.model_type == 'whisper':
    shape = BATCH, config.num_mel_bins, 2 * config.max_source_positions
    features = rng.normal(size=shape).astype(np.float32)
    return {'input_features': torch.tensor(features)}, {
      'source': features.transpose(0, 2, 1)
    }
  return {}, {}
