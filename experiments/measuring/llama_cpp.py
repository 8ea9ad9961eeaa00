"""llama.cpp as a peer: a step of the same model, by llama-cpp-python.

The model goes through a GGUF file of the architecture 'llama', as a user's
model would. llama.cpp does not take the K and V of another program, so a prompt
of the same length fills its cache, which is float32 too.
"""

import collections
import dataclasses
import functools
import importlib
import os
import pathlib
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, peers
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.rows import repeat
from kvjax.decoding.steps import decode_step, prefill
from kvjax.memory.planning import plan
from kvjax.models.config import ModelConfig

MODULES = ('llama_cpp', 'gguf')
CELLS = 256  # a sequence has a multiple of it
CHUNK = 512  # tokens of a prompt that are read at once


@dataclasses.dataclass(frozen=True)
class Kind:
  """A cache of llama.cpp.

  Attributes:
    ggml: type of the cache: 0 for `GGML_TYPE_F32`, 1 for `GGML_TYPE_F16`.
    width: bytes of a number.
    flash: whether the flash kernel attends.
    tolerance: largest error that is accepted.
  """

  ggml: int
  width: int
  flash: bool
  tolerance: float


# The flash kernel would copy a float32 cache to float16 at every step, so each
# kernel has the cache that suits it. The second kind is llama.cpp's default.
KINDS = {
  'llama.cpp': Kind(0, 4, False, 1e-4),
  'llama.cpp flash float16': Kind(1, 2, True, 5e-3),
}


def absence() -> str:
  """Returns why llama.cpp is not raced here; '' where it is."""
  return peers.why_absent(*MODULES, platforms=('cpu',))


def entries(case: Any, calls: int) -> dict[str, clock.Entry]:
  """Returns what builds the runners of a race of steps: `KINDS`, or nothing.

  Args:
    case: a `ModelCase` of a float32 model, whose rows are all given the same
      prompt.
    calls: steps of one call.
  """
  config, params = case.config, case.params
  ids = np.random.default_rng(0).integers(0, config.vocab_size, case.context)
  loaded = functools.cache(lambda: Model(config, params))
  want = functools.cache(lambda: _expected(config, params, ids, case.token))
  planned = plan(config, batch_size=1, capacity=1)
  numbers = case.batch * case.context * planned.bytes_per_token // 4

  def entry(kind):
    sequences = Context(loaded(), ids, case.batch, kind)
    step = functools.partial(sequences.step, np.asarray(case.token))
    call = clock.queued(step, calls, np.asarray)
    size = planned.active_params_bytes + numbers * kind.width
    expected = clock.Expected(want(), size, kind.tolerance, calls)
    return expected.runner(call, result=step())

  raced = {} if absence() else KINDS
  return {name: functools.partial(entry, kind) for name, kind in raced.items()}


def _expected(
  config: ModelConfig, params: Any, ids: np.ndarray, token: jax.Array
) -> np.ndarray:
  """Returns logits `[B, V]` of kvjax after the prompt and the token."""
  cache = init_cache(config, 1, len(ids) + 1)
  _, cache = prefill(config, params, cache, jnp.asarray(ids, jnp.int32)[None])
  logits, _ = decode_step(config, params, repeat(cache, len(token)), token)
  return np.asarray(logits)


class Model:
  """A model that llama.cpp read from a file, which is deleted again."""

  def __init__(self, config: ModelConfig, params: Mapping[str, Any]):
    self.vocab_size = config.vocab_size
    lib: Any = importlib.import_module('llama_cpp')
    self.lib = lib
    # Without a callback llama.cpp prints a description of the whole file.
    self.silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(self.silent, None)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'model.gguf'
      write_gguf(path, config, params)
      settings = lib.llama_model_default_params()
      self.pointer = lib.llama_model_load_from_file(os.fsencode(path), settings)
    if not self.pointer:
      raise RuntimeError('llama.cpp cannot load the model that was written.')
    weakref.finalize(self, lib.llama_model_free, self.pointer)


class Context:
  """B sequences of llama.cpp that contain one prompt, ids `[S]`."""

  def __init__(self, model: Model, ids: np.ndarray, batch: int, kind: Kind):
    self.model = model
    self.filled = len(ids)
    lib = model.lib
    settings = lib.llama_context_default_params()
    cells = (len(ids) // CELLS + 1) * CELLS
    settings.n_ctx = cells * batch
    settings.n_seq_max = batch
    settings.n_batch = settings.n_ubatch = CHUNK
    settings.n_threads = settings.n_threads_batch = os.cpu_count()
    settings.type_k = settings.type_v = kind.ggml
    settings.flash_attn_type = int(kind.flash)
    self.pointer = lib.llama_init_from_model(model.pointer, settings)
    if not self.pointer:
      raise RuntimeError(f'llama.cpp makes no context of {batch} x {cells}.')
    # This finalizer runs before the model's, because the context refers to the
    # model.
    weakref.finalize(self, lib.llama_free, self.pointer)
    self.memory = lib.llama_get_memory(self.pointer)
    rows = [(token, position, 0) for position, token in enumerate(ids)]
    for start in range(0, len(rows), CHUNK):
      self._decode(rows[start : start + CHUNK])
    for row in range(1, batch):
      lib.llama_memory_seq_cp(self.memory, 0, row, -1, -1)

  def _decode(self, rows: Sequence[tuple[int, int, int]]) -> None:
    """Reads tokens, each with its position and its sequence."""
    lib = self.model.lib
    batch = lib.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, row) in enumerate(rows):
      batch.token[i] = int(token)
      batch.pos[i] = position
      batch.n_seq_id[i] = 1
      batch.seq_id[i][0] = row
      batch.logits[i] = position == self.filled
    code = lib.llama_decode(self.pointer, batch)
    lib.llama_batch_free(batch)
    if code:
      raise RuntimeError(f'llama_decode returned {code}.')

  def step(self, token: np.ndarray) -> np.ndarray:
    """Returns logits `[B, V]` after a token a row, which is removed again."""
    lib = self.model.lib
    self._decode([(x, self.filled, row) for row, x in enumerate(token)])
    shape = (len(token), self.model.vocab_size)
    logits = lib.llama_get_logits(self.pointer)
    logits = np.ctypeslib.as_array(logits, shape).copy()
    for row in range(len(token)):
      lib.llama_memory_seq_rm(self.memory, row, self.filled, -1)
    return logits


def stored_type(path: str) -> str:
  """Returns the type of most weights of a GGUF file: 'F32', 'Q4_1'."""
  gguf: Any = importlib.import_module('gguf')
  sizes: collections.Counter[str] = collections.Counter()
  for tensor in gguf.GGUFReader(path).tensors:
    sizes[tensor.tensor_type.name] += int(tensor.n_elements)
  return sizes.most_common(1)[0][0]


def write_gguf(
  path: pathlib.Path, config: ModelConfig, params: Mapping[str, Any]
) -> None:
  """Writes a float32 model as GGUF, without a vocabulary.

  Raises:
    ValueError: the weights have another dtype, whose bytes would differ.
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


def tensors(
  config: ModelConfig, params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns weights by GGUF's names, rows of queries and keys paired."""
  gguf: Any = importlib.import_module('gguf')
  kind = gguf.MODEL_ARCH.LLAMA
  names = gguf.get_tensor_name_map(kind, len(config.layers))
  attention: Any = config.layers[0].attention
  heads = {'q_proj': attention.num_heads, 'k_proj': attention.num_kv_heads}
  weights = {}
  for name, weight in peers.llama_names(params).items():
    array = np.asarray(weight)
    if count := heads.get(name.split('.')[-2]):
      array = paired(array, count)
    weights[names.get_name(name, ('.weight',))] = array
  return weights


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
  """Returns rows `[N * H, D]`; the two of a rotation become neighbours.

  llama.cpp rotates features (2i, 2i + 1) where kvjax rotates (i, i + H / 2).
  Its converter of checkpoints (`convert_hf_to_gguf.py`) reorders rows in the
  same way; the package gguf has no function for it.
  """
  halves = rows.reshape(heads, 2, -1, rows.shape[1])
  return halves.swapaxes(1, 2).reshape(rows.shape)
