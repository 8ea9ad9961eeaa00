"""llama.cpp as a peer: a step of the same model, by llama-cpp-python.

The model goes through a GGUF file, as a user's would. llama.cpp takes no K and
V of others, so its cache, float32 too, is filled by a prompt, as long as ours.
"""

import functools
import importlib
import os
import pathlib
import tempfile
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, gguf_file, peers
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import decode_step, prefill
from kvjax.models.config import ModelConfig

MODULES = {'llama_cpp': 'llama-cpp-python', 'gguf': 'gguf'}
CELLS = 256  # a sequence has a multiple of it
CHUNK = 512  # tokens of a prompt that are read at once
# Name: type of the cache (`GGML_TYPE_F32`, `_F16`), its bytes, by the flash
# kernel, largest error. For that kernel llama.cpp makes of a float32 cache a
# float16 copy at every step. The second kind is its default.
KINDS = {
  'llama.cpp': (0, 4, False, 1e-4),
  'llama.cpp flash float16': (1, 2, True, 5e-3),
}


def absent() -> dict[str, str]:
  """Returns why llama.cpp is not raced here, if it is not."""
  if (platform := jax.default_backend()) != 'cpu':
    return {'llama.cpp': f'not raced on {platform}'}
  lacking = ', '.join(MODULES[name] for name in peers.missing(*MODULES))
  return {'llama.cpp': f'not installed: {lacking}'} if lacking else {}


def entries(
  config: ModelConfig,
  params: Mapping[str, Any],
  context: int,
  token: jax.Array,
  calls: int,
  weights: int,
) -> dict[str, Callable[[], clock.Runner]]:
  """Returns who takes part in a race of steps: `KINDS`, or nobody.

  Args:
    config: of a float32 model.
    params: of the model.
    context: tokens of the prompt, the same in every row.
    token: int32 `[B]`.
    calls: steps of one call.
    weights: bytes of them that a step reads.
  """
  ids = np.random.default_rng(0).integers(0, config.vocab_size, context)
  loaded = functools.cache(lambda: Model(config, params))
  want = functools.cache(lambda: _wanted(config, params, ids, token))
  layers: list[Any] = [layer.attention for layer in config.layers]
  stored = sum(2 * x.num_kv_heads * x.key_width for x in layers) * context

  def entry(kind, width, flash, tolerance):
    held = Context(loaded(), ids, len(token), kind, flash)
    step = functools.partial(held.step, np.asarray(token))
    error = clock.difference(step(), want())
    call = clock.queued(step, calls, np.asarray)
    size = weights + len(token) * stored * width
    return clock.Runner(call, size, '', error, tolerance, calls)

  raced = {} if absent() else KINDS
  return {name: functools.partial(entry, *kind) for name, kind in raced.items()}


def _wanted(config, params, ids, token) -> np.ndarray:
  cache = init_cache(config, 1, len(ids) + 1)
  given = jnp.asarray(ids, jnp.int32)[None]
  _, cache = prefill(config, params, cache, given)
  step = functools.partial(decode_step, config, params, cache, donate=False)
  return np.concatenate([np.asarray(step(x[None])[0]) for x in token])


class Model:
  """A model that llama.cpp read from a file, which is gone again."""

  def __init__(self, config: ModelConfig, params: Mapping[str, Any]):
    self.vocab_size = config.vocab_size
    lib: Any = importlib.import_module('llama_cpp')
    self.lib, self.silent = lib, lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(self.silent, None)  # else it describes the whole file
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'model.gguf'
      gguf_file.write(path, config, params)
      how = lib.llama_model_default_params()
      self.pointer = lib.llama_model_load_from_file(os.fsencode(path), how)
    if not self.pointer:
      raise RuntimeError('llama.cpp cannot load the model that was written.')
    weakref.finalize(self, lib.llama_model_free, self.pointer)


class Context:
  """B sequences of llama.cpp that hold one prompt, ids `[S]`."""

  def __init__(self, model: Model, ids: np.ndarray, batch: int, kind, flash):
    self.model, self.filled, lib = model, len(ids), model.lib
    how = lib.llama_context_default_params()
    cells = (len(ids) // CELLS + 1) * CELLS
    how.n_ctx, how.n_seq_max = cells * batch, batch
    how.n_batch = how.n_ubatch = CHUNK
    how.n_threads = how.n_threads_batch = os.cpu_count()
    how.type_k = how.type_v = kind
    how.flash_attn_type = int(flash)
    self.pointer = lib.llama_init_from_model(model.pointer, how)
    if not self.pointer:
      raise RuntimeError(f'llama.cpp makes no context of {batch} x {cells}.')
    # Runs before the model's own: this object holds the model until then.
    weakref.finalize(self, lib.llama_free, self.pointer)
    self.memory = lib.llama_get_memory(self.pointer)
    rows = [(token, position, 0) for position, token in enumerate(ids)]
    for start in range(0, len(rows), CHUNK):
      self._decode(rows[start : start + CHUNK])
    for row in range(1, batch):
      lib.llama_memory_seq_cp(self.memory, 0, row, -1, -1)

  def _decode(self, rows) -> None:
    given = self.model.lib.llama_batch_init(len(rows), 0, 1)
    given.n_tokens = len(rows)
    for i, (token, position, row) in enumerate(rows):
      given.token[i], given.pos[i] = int(token), position
      given.n_seq_id[i], given.seq_id[i][0] = 1, row
      given.logits[i] = position == self.filled
    code = self.model.lib.llama_decode(self.pointer, given)
    self.model.lib.llama_batch_free(given)
    if code:
      raise RuntimeError(f'llama_decode returned {code}.')

  def step(self, token: np.ndarray) -> np.ndarray:
    """Returns logits `[B, V]` after a token a row, which is removed again."""
    lib = self.model.lib
    self._decode([(x, self.filled, row) for row, x in enumerate(token)])
    found, vocab = lib.llama_get_logits(self.pointer), self.model.vocab_size
    logits = np.ctypeslib.as_array(found, (len(token), vocab)).copy()
    for row in range(len(token)):
      lib.llama_memory_seq_rm(self.memory, row, self.filled, -1)
    return logits
