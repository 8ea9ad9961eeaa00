"""A float32 model as a GGUF file, of the architecture 'llama'."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.measuring import peers
from kvjax.models.config import ModelConfig


def tensors(
  config: ModelConfig, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns weights by GGUF's names, rows of queries and keys as pairs."""
  gguf: Any = importlib.import_module('gguf')
  kind = gguf.MODEL_ARCH.LLAMA
  names = gguf.get_tensor_name_map(kind, len(config.layers))
  attention: Any = config.layers[0].attention
  heads = {'q_proj': attention.num_heads, 'k_proj': attention.num_kv_heads}
  found = {}
  for name, weight in peers.llama_names(params).items():
    array = np.asarray(weight)
    if count := heads.get(name.split('.')[-2]):
      array = paired(array, count)
    found[names.get_name(name, ('.weight',))] = array
  return found


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
  """Returns rows `[N * H, D]`, in each head those of a rotation neighbours.

  llama.cpp rotates features (2i, 2i + 1) where ours are (i, i + H / 2): its
  converter of checkpoints (`convert_hf_to_gguf.py`) reorders rows likewise.
  """
  halves = rows.reshape(heads, 2, -1, rows.shape[1])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def write(
  path: pathlib.Path, config: ModelConfig, params: Mapping[str, Any]
) -> None:
  """Writes a float32 model as GGUF, without a vocabulary.

  Raises:
    ValueError: weights of another dtype: wider ones would be other bytes.
  """
  if config.dtype != 'float32':
    raise ValueError(f'llama.cpp is raced in float32, not in {config.dtype}.')
  gguf: Any = importlib.import_module('gguf')
  attention: Any = config.layers[0].attention
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('none')
  writer.add_vocab_size(config.vocab_size)
  writer.add_context_length(1 << 16)
  writer.add_embedding_length(config.width)
  writer.add_feed_forward_length(config.layers[0].mlp.hidden)
  writer.add_block_count(len(config.layers))
  writer.add_head_count(attention.num_heads)
  writer.add_head_count_kv(attention.num_kv_heads)
  writer.add_key_length(attention.key_width)
  writer.add_value_length(attention.key_width)
  writer.add_rope_dimension_count(attention.rotary.width)
  writer.add_rope_freq_base(attention.rotary.base)
  writer.add_layer_norm_rms_eps(config.norm.eps)
  for name, array in tensors(config, params).items():
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
