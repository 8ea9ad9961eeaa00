"""Differences of a checkpoint's logits from its reference, way by way.

    python -m tests.checkpoints.compare [folder ...]

prints a line a folder, by default every fixture: the figures of docs/models.md.
"""

import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.caches.dense import Dense
from kvjax.caches.paged import Paged
from kvjax.checkpoints import load_checkpoint

TOLERANCE = 1e-4
RELATIVE = 2e-6  # of the largest logit: some 17 of its last places
CHUNK = 5  # tokens a call of the ragged way
PROMPT = 13  # tokens before the greedy continuation


def differences(path: pathlib.Path, ways: Iterable[str]) -> dict[str, float]:
  """Returns the largest difference from `reference.npz`, by way.

  With the way `steps` also `greedy`: how many tokens of the greedy continuation
  are others.
  """
  config, params = load_checkpoint(path)
  with np.load(path / 'reference.npz') as found:
    data = dict(found)
  encoded = source(config, params, data)
  found = {
    way: float(
      np.max(
        np.abs(
          WAYS[way](config, params, data['tokens'], encoded) - data['logits']
        )
      )
    )
    for way in ways
  }
  if 'steps' in found:
    new = greedy(config, params, data['tokens'], encoded)
    found['greedy'] = float((new != data['greedy']).sum())
  return found


def limit(path: pathlib.Path) -> float:
  """Returns the difference that `reference.npz` allows.

  1e-4, and more only where logits exceed 50: float32 of transformers itself is
  then as far from its float64.
  """
  with np.load(path / 'reference.npz') as found:
    largest = float(np.abs(found['logits']).max())
  return max(TOLERANCE, RELATIVE * largest)


def source(config: Any, params: Any, data: Mapping[str, np.ndarray]) -> Any:
  """Returns the encoder's output of an encoder-decoder; None of a decoder."""
  if 'source' not in data:
    return None
  ids = jnp.asarray(data['source'])
  return kvjax.encode(config, params, ids, data.get('lengths'))


def uncached(config, params, tokens, encoded) -> np.ndarray:
  return np.asarray(
    kvjax.forward(config, params, jnp.asarray(tokens), encoded=encoded)
  )


def steps(config, params, tokens, encoded) -> np.ndarray:
  """One token at a time through each layer's default kind."""
  cache = empty(config, tokens)
  tokens = jnp.asarray(tokens)
  logits, cache = kvjax.prefill(
    config, params, cache, tokens[:, :1], encoded=encoded
  )
  found = [logits]
  for t in range(1, tokens.shape[1]):
    logits, cache = kvjax.decode_step(config, params, cache, tokens[:, t])
    found.append(logits)
  return np.stack(found, axis=1)


def greedy(config, params, tokens, encoded) -> np.ndarray:
  """Continues the first `PROMPT` tokens, by the programs of `steps`."""
  cache = empty(config, tokens)
  ids = np.array(tokens)
  logits, cache = kvjax.prefill(
    config, params, cache, jnp.asarray(ids[:, :1]), encoded=encoded
  )
  for t in range(1, ids.shape[1]):
    if t >= PROMPT:
      ids[:, t] = np.asarray(logits).argmax(-1)
    logits, cache = kvjax.decode_step(
      config, params, cache, jnp.asarray(ids[:, t])
    )
  return ids[:, PROMPT:]


def ragged(config, params, tokens, encoded) -> np.ndarray:
  """Chunks of 1 to `CHUNK` tokens, of another length in every row."""
  cache = empty(config, tokens)
  batch, length = tokens.shape
  seen = np.zeros(batch, np.int32)
  rng = np.random.default_rng(0)
  found = np.full((batch, length, config.vocab_size), np.nan, np.float32)
  while (seen < length).any():
    count = np.minimum(rng.integers(1, CHUNK + 1, batch), length - seen)
    chunk = np.zeros((batch, CHUNK), np.int32)
    for row in range(batch):
      chunk[row, : count[row]] = tokens[row, seen[row] : seen[row] + count[row]]
    logits, cache = kvjax.extend(
      config,
      params,
      cache,
      jnp.asarray(chunk),
      count.astype(np.int32),
      encoded=encoded,
    )
    encoded = None if cache.cross is not None else encoded
    for row in range(batch):
      span = slice(seen[row], seen[row] + count[row])
      found[row, span] = np.asarray(logits)[row, : count[row]]
    seen = seen + count.astype(np.int32)
  return found


def paged(config, params, tokens, encoded) -> np.ndarray:
  """All tokens at once into pages of 4."""
  cache = empty(config, tokens, kinds=Paged(page=4))
  return np.asarray(
    kvjax.extend(config, params, cache, jnp.asarray(tokens), encoded=encoded)[0]
  )


def rewound(config, params, tokens, encoded) -> np.ndarray:
  """All tokens but some wrong ones before the last, which it takes back."""
  cache = empty(config, tokens, kinds=Dense())
  ids = jnp.asarray(tokens)
  begin, rest = ids[:, :PROMPT], ids[:, PROMPT:]
  first, cache = kvjax.extend(config, params, cache, begin, encoded=encoded)
  wrong = (rest + 1) % config.vocab_size
  _, cache = kvjax.extend(config, params, cache, wrong)
  cache = kvjax.rewind(cache, PROMPT)
  last, _ = kvjax.extend(config, params, cache, rest)
  return np.concatenate([first, last], axis=1)


def empty(config: Any, tokens: np.ndarray, **options: Any) -> Any:
  """Returns a cache with room, its tables chosen for the tokens' number."""
  batch, length = tokens.shape
  return kvjax.init_cache(
    config, batch, length, rotary_length=length, **options
  )


Way = Callable[[Any, Any, np.ndarray, Any], np.ndarray]
WAYS: dict[str, Way] = {
  'uncached': uncached,
  'ragged': ragged,
  'steps': steps,
  'paged': paged,
  'rewound': rewound,
}


def main(folders: list[str]) -> None:
  jax.config.update('jax_platforms', 'cpu')
  golden = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints'
  for path in map(pathlib.Path, folders or sorted(golden.iterdir())):
    found = differences(path, WAYS)
    print(path.name, *(f'{x:.1e}' for x in found.values()), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
