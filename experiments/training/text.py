"""Text as bytes: a corpus, its held-out blocks, batches of windows.

A byte is a token, so the vocabulary is 256, every input is valid, and losses
are bits per byte, comparable with compressors. The default corpus is Python's
own standard library: real text, on every machine, without a download. It
differs between Python releases, so no golden number may depend on it.
"""

import dataclasses
import hashlib
import pathlib
import sysconfig

import numpy as np

VOCABULARY = 256
BLOCK = 4096  # bytes
HELD_OUT_EVERY = 20  # blocks
_SKIPPED = {'test', 'tests', 'idle_test', 'site-packages', '__pycache__'}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """Bytes to learn from, and bytes held out to predict.

  Attributes:
    source: where the text came from.
    train: uint8 `[n]`.
    held_out: uint8 `[blocks, BLOCK]`, every 20th block of the text.
    digest: first hexadecimal digits of the text's SHA-256.
  """

  source: str
  train: np.ndarray
  held_out: np.ndarray
  digest: str

  def facts(self) -> dict[str, object]:
    """Returns how a result file describes its text."""
    return {
      'source': self.source,
      'bytes': self.train.size + self.held_out.size,
      'held_out_bytes': self.held_out.size,
      'sha256': self.digest,
    }


def load_corpus(path: str | None = None) -> Corpus:
  """Returns the corpus of a file; of the standard library for None.

  Raises:
    ValueError: the file cannot be read, or has less text than two blocks.
  """
  if path is None:
    return split(standard_library(), 'the Python standard library')
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(
      f'text={path!r} cannot be read ({error.strerror}). Name a file.'
    ) from error
  return split(data, path)


def split(data: bytes, source: str) -> Corpus:
  """Returns a corpus with every 20th block of 4 KiB held out.

  Raises:
    ValueError: the text is shorter than a held-out block and one to learn
      from.
  """
  if len(data) < 2 * BLOCK:
    raise ValueError(
      f'text={source!r} has {len(data)} bytes: at least {2 * BLOCK} are '
      'needed, a block to learn from and a block held out. Use a longer file.'
    )
  text = np.frombuffer(data, np.uint8)
  blocks = text[: len(text) // BLOCK * BLOCK].reshape(-1, BLOCK)
  first = min(HELD_OUT_EVERY, len(blocks)) - 1
  is_held_out = np.arange(len(blocks)) % HELD_OUT_EVERY == first
  return Corpus(
    source,
    blocks[~is_held_out].reshape(-1),
    blocks[is_held_out],
    hashlib.sha256(data).hexdigest()[:12],
  )


def standard_library() -> bytes:
  """Returns the sources of the standard library, its tests left out."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  files = sorted(
    path
    for path in root.rglob('*.py')
    if not _SKIPPED & set(path.relative_to(root).parts)
  )
  return b'\n'.join(path.read_bytes() for path in files)


def training_batch(
  corpus: Corpus, *, seed: int, step: int, batch: int, length: int
) -> np.ndarray:
  """Returns int32 `[batch, length + 1]` of random training windows.

  Seed and step alone decide them.
  """
  _check_length(length, corpus.train.size - 1)
  rng = np.random.default_rng((seed, step))
  starts = rng.integers(0, corpus.train.size - length, size=batch)
  places = starts[:, None] + np.arange(length + 1)[None, :]
  return corpus.train[places].astype(np.int32)


def held_out_batch(corpus: Corpus, *, rows: int, length: int) -> np.ndarray:
  """Returns int32 `[rows, length]` of windows spread over held-out blocks.

  No window crosses a block. They are the same for every seed; a corpus with
  fewer blocks gives several windows a block, then fewer rows.
  """
  _check_length(length, BLOCK)
  each = BLOCK // length
  windows = corpus.held_out[:, : each * length].reshape(-1, length)
  count = min(rows, len(windows))
  chosen = np.linspace(0, len(windows) - 1, count).round().astype(int)
  return windows[chosen].astype(np.int32)


def _check_length(length: int, limit: int) -> None:
  if not 2 <= length <= limit:
    raise ValueError(
      f'length={length} must be between 2 and the {limit} bytes there are.'
    )
