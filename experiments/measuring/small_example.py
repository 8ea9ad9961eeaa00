"""The answer in small: three rows, who reads which, and what that costs."""

import jax
import numpy as np

import kvjax
from experiments.measuring.separation import readers
from experiments.measuring.variants import VARIANTS, with_attention
from experiments.reporting.blocks import Block, Heading, Table, Text
from experiments.training.variants import bytes_per_token, query_bytes_per_token
from kvjax.attention.reference import masked_softmax

# The phrases of the note that docs/why_no_q.zh.md quotes, in English.
PHRASES = (
  'does not eat|coriander|newcomer',
  'likes|riding|motorcycles',
  'hobby|is|research',
)
X = np.asarray([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
# A tenth of a permutation each, so that anyone can check a product by hand.
WEIGHTS = {
  'query': np.eye(3, dtype=np.float32)[[0, 1, 2]] / 10,
  'key': np.eye(3, dtype=np.float32)[[1, 2, 0]] / 10,
  'value': np.eye(3, dtype=np.float32)[[0, 2, 1]] / 10,
}


def answer_blocks() -> tuple[Block, ...]:
  """Returns the answer as blocks of a report; computes them in a second."""
  return (
    Heading('The answer in small'),
    Text(
      'Three phrases of three features go through one causal head, '
      '`O = softmax(mask(Q K^T) / sqrt(3)) V` with `Q = X W_Q`, `K = X W_K` '
      'and `V = X W_V`: three projections of the same rows, made alike.'
    ),
    *_three_rows(),
    Text(
      'Row i of the output reads **one** row of Q, that of the same token, '
      'and **every** earlier row of K and V. A new token needs a new row of '
      'the output: the token brings a new q and reads old k and v. No later '
      'row reads an old q, so no q is kept. (No row reads the first q: a '
      'softmax over a single key is 1 whatever the query is.)'
    ),
    _sizes(),
  )


def llama_models() -> dict[str, kvjax.ModelConfig]:
  """Returns Llama-3-8B with the attention of each variant, by its name."""
  llama = kvjax.load_config('llama-3-8b')
  return {name.upper(): with_attention(llama, name) for name in VARIANTS}


def llama_bytes() -> dict[str, tuple[int, int]]:
  """Returns bytes a token at Llama-3-8B's size: the cache, and a Q cache's."""
  return {
    name: (bytes_per_token(config), query_bytes_per_token(config))
    for name, config in llama_models().items()
  }


def _three_rows() -> tuple[Table, Table]:
  q, k, v = (X @ weight for weight in WEIGHTS.values())
  causal = np.tri(3, dtype=bool)
  weights = np.asarray(jax.jit(masked_softmax)(q @ k.T / 3**0.5, causal))
  reads = [np.asarray(rows) for rows in readers(3, kvjax.Scoring(1.0)).values()]
  tokens, outputs = [], []
  for i, phrase in enumerate(PHRASES):
    tokens.append([phrase, *(_vector(rows[i]) for rows in (X, q, k, v))])
    mixture = ' + '.join(f'{weights[i, j]:.2f} v{j}' for j in range(i + 1))
    sources = map(_indices, 'qkv', (is_read[i] for is_read in reads))
    outputs.append([f'o{i} = {mixture}', *sources])
  return (
    Table('What a token makes', ('token', 'x', 'q', 'k', 'v'), tokens),
    Table(
      'Who reads which row (found by changing one row at a time)',
      ('output row', 'of Q', 'of K', 'of V'),
      outputs,
    ),
  )


def _sizes() -> Table:
  models = llama_models()
  rows = []
  for name, (kept, query) in llama_bytes().items():
    long = f'{kept * 131072 / 2**30:.1f} GiB'
    coded = bytes_per_token(models[name], kvjax.Int8())
    times = f'x {1 + query / kept:.1f}'
    rows.append([name, kept, long, coded, query, times])
  columns = ('attention', 'kept per token', '128k tokens', 'with Int8()')
  return Table(
    'Bytes a token leaves behind, at the size of Llama-3-8B in bfloat16',
    (*columns, 'a Q cache would add', 'and make it'),
    rows,
    '32 layers, 32 heads of 128; GQA 8 kv heads (Llama-3-8B itself), MLA '
    'a latent of 512 and a rotated key of 64 (sizes of DeepSeek-V3).',
  )


def _vector(row: np.ndarray) -> str:
  return '(' + ' '.join(f'{value:.2g}' for value in row) + ')'


def _indices(letter: str, is_read: np.ndarray) -> str:
  return ' '.join(f'{letter}{j}' for j in np.flatnonzero(is_read)) or 'none'
