"""The answer in small: three rows, who reads which, and what that costs."""

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from experiments.measuring.separation import readers
from experiments.measuring.variants import VARIANTS, with_attention
from experiments.reporting.blocks import Block, Heading, Table, Text
from experiments.training.variants import bytes_per_token, query_bytes_per_token
from kvjax.attention.attend import Scoring
from kvjax.attention.reference import plain_attention
from kvjax.models.config import ModelConfig
from kvjax.streams.codecs import Int8

PHRASES = ('不爱吃|香菜的|萌新', '喜欢|骑|摩托车', '爱好|是|研究')
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


def llama_models() -> dict[str, ModelConfig]:
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
  weights = np.asarray(_attention_weights(q, k, v))
  reads = [np.asarray(rows) for rows in readers(3, Scoring(1.0)).values()]
  tokens, outputs = [], []
  for i, phrase in enumerate(PHRASES):
    tokens.append([phrase, *(_vector(rows[i]) for rows in (X, q, k, v))])
    mixture = ' + '.join(f'{weights[i, j]:.2f} v{j}' for j in range(i + 1))
    sources = [
      _indices(n, rows[i]) for n, rows in zip('qkv', reads, strict=True)
    ]
    outputs.append([f'o{i} = {mixture}', *sources])
  return (
    Table('What a token makes', ('token', 'x', 'q', 'k', 'v'), tokens),
    Table(
      'Who reads which row (found by changing one row at a time)',
      ('output row', 'of Q', 'of K', 'of V'),
      outputs,
    ),
  )


@jax.jit
def _attention_weights(q, k, v):
  positions = jnp.arange(3, dtype=jnp.int32)[None, :]
  streams = {'key': k[None, None], 'value': v[None, None]}
  queries = {'key': q[None, None, None]}
  scoring = Scoring(3**-0.5)
  weights = plain_attention(queries, streams, positions, positions, scoring)[1]
  return weights[0, 0, 0]


def _sizes() -> Table:
  models = llama_models()
  rows = [
    {
      'attention': name,
      'kept per token': kept,
      '128k tokens': f'{kept * 131072 / 2**30:.1f} GiB',
      'with Int8()': bytes_per_token(models[name], Int8()),
      'a Q cache would add': query,
      'and make it': f'x {(kept + query) / kept:.1f}',
    }
    for name, (kept, query) in llama_bytes().items()
  ]
  return Table(
    'Bytes a token leaves behind, at the size of Llama-3-8B in bfloat16',
    tuple(rows[0]),
    [list(row.values()) for row in rows],
    note='32 layers, 32 heads of 128; GQA 8 kv heads (Llama-3-8B itself), MLA '
    'a latent of 512 and a rotated key of 64 (sizes of DeepSeek-V3).',
  )


def _vector(row: np.ndarray) -> str:
  return '(' + ' '.join(f'{value:.2g}' for value in row) + ')'


def _indices(letter: str, is_read: np.ndarray) -> str:
  return ' '.join(f'{letter}{j}' for j in np.flatnonzero(is_read)) or 'none'
