"""The origin note's argument, computed: the numbers of docs/why_no_q.md.

  python -m experiments.why_no_q_cache.origin_note

Three phrases of three features go through one head, Q = X W_Q and so on. Who
reads which row is found by changing one row at a time. What must be remembered
is found by `kvjax.liveness`, from the same formulas without a cache.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name as name

from experiments import launch
from experiments.measuring.small_example import WEIGHTS, X
from experiments.why_no_q_cache import examples
from experiments.why_no_q_cache.derived import live_range
from kvjax import liveness
from kvjax.attention.reference import masked_softmax
from kvjax.liveness.analysis import analyze_trace
from kvjax.liveness.evidence import lengths, perturb
from kvjax.liveness.program.recorder import trace_program

Array = np.ndarray
SCALE = 3**-0.5


def sections() -> dict[str, str]:
  """Returns every text of numbers in `docs/why_no_q.md`, by its heading."""
  lines_of = {
    'projections': projections(),
    'rows_and_columns': rows_and_columns(),
    'encoder': mixtures(causal=False),
    'decoder': mixtures(causal=True),
    'syllable': syllable(),
    'ties': ties(),
    'growing': growing(),
    'stack': stack(),
    'making': making(),
  }
  return {
    heading: ''.join(f'{line.rstrip()}\n' for line in lines)
    for heading, lines in lines_of.items()
  }


def projections() -> Iterator[str]:
  """X, Q, K and V."""
  yield '      x            q = x W_Q        k = x W_K        v = x W_V'
  for i, row in enumerate(zip(X, *_qkv(), strict=True), 1):
    cells = [' '.join(f'{value:g}' for value in row[0])]
    cells += [' '.join(f'{value:.1f}' for value in part) for part in row[1:]]
    yield f'{i}   ' + '    '.join(f'({c})'.ljust(13) for c in cells)


def rows_and_columns() -> Iterator[str]:
  """Q K^T in symbols and numbers, row 1 and column 1 in brackets."""
  q, k, _ = _qkv()
  symbols = [[f'q{i}.k{j}' for j in (1, 2, 3)] for i in (1, 2, 3)]
  numbers = [[f'{value:.2f}' for value in row] for row in q @ k.T]
  for i in range(3):
    yield f'{_marked(i, symbols[i])}      {_marked(i, numbers[i])}'
  scores = lambda q, k: q @ k.T
  for axis, label in enumerate(('row 1   ', 'column 1')):
    by_q, by_k = (_movers(scores, (q, k), letter, axis) for letter in 'qk')
    yield f'{label} is moved by {by_q} and {by_k}'


def mixtures(causal: bool) -> Iterator[str]:
  """Every row of an encoder sees all rows, row i of a decoder those up to i."""
  q, k, v = _qkv()
  q *= SCALE
  weights = _weights(q, k, causal)
  outputs = lambda q, k, v: _weights(q, k, causal) @ v
  for i in range(3):
    mixture = ' + '.join(
      f'{weights[i, j]:.3f} v{j + 1}' for j in range(3) if weights[i, j]
    )
    reads = [_movers(outputs, (q, k, v), letter, 0, i) for letter in 'qkv']
    yield f'o{i + 1} = {mixture:31} reads {"  ".join(reads)}'


def syllable() -> Iterator[str]:
  """One query, four keys, their weights and the mixture of the values."""
  k = np.log([0.1, 0.5, 0.2, 0.2])
  v = np.asarray([1.0, 2, 3, 4])
  for q in (1, 2):
    weights = np.asarray(jax.nn.softmax(q * k))
    shown = ' '.join(f'{weight:.2f}' for weight in weights)
    yield f'q = {q}: weights {shown}, output {weights @ v:.2f}'
  yield 'one output reads one q, four k and four v'


def ties() -> Iterator[str]:
  """What is kept when rows, columns and names are exchanged."""
  programs = {
    'softmax over rows': _attention(),
    'the names exchanged': _attention('k', 'q'),
    'softmax over columns': _columns,
  }
  for label, program in programs.items():
    kept = ', '.join(liveness.analyze(program, _input(8)).keep)
    yield f'{label:21} keeps {kept}'


def growing() -> Iterator[str]:
  """What a third phrase does to the rows of the first two."""
  q, k, v = _qkv()
  q *= SCALE
  for label, causal in (('encoder', False), ('decoder', True)):
    before = _weights(q[:2], k[:2], causal) @ v[:2]
    after = _weights(q, k, causal) @ v
    moved = np.abs(after[:2] - before).max(1)
    report = liveness.analyze(_attention(causal=causal), _input(8))
    kept = ', '.join(report.keep) or 'nothing: no finite cache is exact'
    yield f'{label}: o1 moves by {moved[0]:.4f}, o2 by {moved[1]:.4f}'
    steps = live_range(report.live_for['q'])
    yield f'         q is read by {steps}; keep {kept}'


def stack() -> Iterator[str]:
  """Two layers: an old query's influence, and what separates it."""
  x = lengths.resize(_input(8), 14, 0)
  noise = np.where(np.arange(14)[:, None] < 13, _input(14), 0)
  moved = np.abs(_two_layers(x, noise) - _two_layers(x))[-1].max()
  verdict = analyze_trace(trace_program(_two_layers, x))
  change = lambda lost: perturb.poison(verdict, x, lost)
  kept = ' '.join(verdict.names[i] for i in verdict.cut.kept)
  lost = [verdict.names[i] for i in verdict.cut.kept if change((i,)) > 0]
  yield f'noise on old q1, nothing kept: the last row moves by {moved:.2f}'
  yield f'keep {kept}: noise on all else moves it by {change(()):g}'
  yield f'lose any one of {" ".join(lost)}: it moves'


def making() -> Iterator[str]:
  """Equal q, k and v by equal weights; then a program that reads old q."""
  x = _input(8)
  programs = {
    'W_Q = W_K = W_V:': _attention(weights=(0, 0, 0)),
    'scores of six rows mixed:': examples.example(
      'mta', examples.Sizes(width=3, key_width=4)
    ),
  }
  for label, program in programs.items():
    live_for = liveness.analyze(program, x).live_for
    lives = ', '.join(f'{n} {live_range(live_for[n])}' for n in 'qkv')
    yield f'{label:25} {lives}'


def _qkv() -> tuple[Array, Array, Array]:
  q, k, v = (X @ w for w in WEIGHTS.values())
  return q, k, v


def _input(length: int) -> Array:
  draw = np.random.default_rng(0)
  return draw.normal(size=(length, 3)).astype(np.float32)


def _movers(function, operands, letter: str, axis: int, index: int = 0) -> str:
  """Returns the rows of an operand that move a row (axis 0) or column (1)."""
  line = lambda parts: np.asarray(function(*parts)).take(index, axis)
  movers = []
  for row in range(3):
    moved = [operand.copy() for operand in operands]
    moved['qkv'.index(letter)][row] += 1
    if np.any(line(moved) != line(operands)):
      movers.append(f'{letter}{row + 1}')
  return ' '.join(movers) or f'no {letter}'


def _marked(row: int, cells: Sequence[str]) -> str:
  return ' '.join(
    f'[{cell}]' if row == 0 or j == 0 else f' {cell} '
    for j, cell in enumerate(cells)
  )


def _attention(
  rows: str = 'q',
  columns: str = 'k',
  weights: Sequence[int] = (0, 1, 2),
  causal: bool = True,
) -> examples.Program:
  """Returns one head; `rows` and `columns` name the tensors of the scores."""

  def program(x: jax.Array) -> jax.Array:
    left, right, v = _project(x, (rows, columns, 'v'), weights)
    return _weights(left, right, causal) @ v

  return program


def _project(
  x: jax.Array | Array, names: Sequence[str], seeds: Sequence[int]
) -> list[jax.Array]:
  """Returns named products of x and the weights of these seeds."""
  pairs = zip(names, seeds, strict=True)
  return [name(x @ _weight(seed), letter) for letter, seed in pairs]


def _weights(
  q: jax.Array | Array, k: jax.Array | Array, causal: bool = True
) -> jax.Array:
  scores = jnp.asarray(q @ k.T)
  return masked_softmax(scores, examples.visible(len(q), causal))


def _weight(seed: int) -> Array:
  draw = np.random.default_rng((1, seed))
  return draw.normal(size=(3, 3)).astype(np.float32)


def _columns(x: jax.Array) -> jax.Array:
  """One head whose new token brings column j of Q K^T: its k reads every q.

  The softmax over columns of Q K^T is that over rows of its transpose, K Q^T.
  """
  q, k, v = _project(x, 'qkv', range(3))
  return _weights(k, q) @ v


def _two_layers(x: jax.Array | Array, noise: Array | None = None) -> jax.Array:
  """Two heads, one after the other; adds `noise` to queries of the first."""
  q, k, v = _project(x, ('q1', 'k1', 'v1'), range(3, 6))
  x = x + _weights(q if noise is None else q + noise, k) @ v
  q, k, v = _project(x, ('q2', 'k2', 'v2'), range(6, 9))
  return jnp.asarray(x + _weights(q, k) @ v)


def main(argv: list[str]) -> None:
  del argv
  for heading, text in sections().items():
    print(f'# {heading}\n{text}')


if __name__ == '__main__':
  launch.run(main)
