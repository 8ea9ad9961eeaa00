"""What the model reads: contexts to compress, and what is fed behind them.

Prose goes on, or a piece of the context is quoted and its continuation
predicted; or questions are put about numbers that the context hides. Nothing
behind a context is known when it is compressed.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from experiments.measuring.hidden_numbers import help_topics, hide_numbers
from kvjax.decoding.allocate import check_sizes
from kvjax.text.tokenizer import Tokenizer

ADJECTIVES = 'amber brisk calm dusty eager faint gentle hollow icy jolly keen '
ADJECTIVES += 'lucky mellow noble odd proud quiet rusty silent tidy'
NOUNS = 'falcon river lantern bridge teapot garden rocket violin meadow anchor '
NOUNS += 'barrel candle dragon engine forest goblet hammer island jacket kettle'
NONE = -1  # no token, and no target


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """What is fed behind each of R contexts, J times anew.

  Attributes:
    name: of the part.
    tokens: int32 `[J, R, L]`, padded by -1 on the right.
    targets: int32 `[J, R, L]`: the token after each where the prediction of it
      is compared, -1 elsewhere.
  """

  name: str
  tokens: np.ndarray
  targets: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """R contexts of T tokens, and what follows them.

  Attributes:
    name: of the reading.
    contexts: int32 `[R, T]`.
    parts: what is fed behind them; each finds the contexts alone.
  """

  name: str
  contexts: np.ndarray
  parts: tuple[Part, ...]

  @property
  def width(self) -> int:
    """Tokens of the longest part."""
    return max(part.tokens.shape[2] for part in self.parts)


@dataclasses.dataclass(frozen=True)
class ProseSize:
  """Sizes of prose.

  Attributes:
    windows: R contexts, spread over the text.
    context: T tokens of each.
    following: tokens of the text that are fed behind it.
    copies: J quotes of each context.
    quoted: tokens of a quote.
    copied: tokens after a quote whose predictions count.
  """

  windows: int
  context: int
  following: int
  copies: int
  quoted: int
  copied: int

  def __post_init__(self):
    check_sizes(**dataclasses.asdict(self))
    if self.quoted + self.copied > self.context // self.copies:
      raise ValueError(
        f'prose.copies={self.copies} quotes of {self.quoted} + {self.copied} '
        f'tokens overlap in a context of {self.context}. Take fewer.'
      )


@dataclasses.dataclass(frozen=True)
class RetrievalSize:
  """Sizes of a context that hides numbers.

  Attributes:
    contexts: R that are measured.
    context: T tokens of each.
    numbers: J hidden in each, and so many questions.
  """

  contexts: int
  context: int
  numbers: int

  def __post_init__(self):
    check_sizes(**dataclasses.asdict(self))
    most = len(ADJECTIVES.split())
    if self.numbers > most:
      raise ValueError(f'numbers={self.numbers} must be at most {most}.')

  @property
  def name(self) -> str:
    return f'{self.numbers} numbers in {self.context}'


def calibration_tokens(tokenizer: Tokenizer, size: ProseSize) -> np.ndarray:
  """Returns tokens `[1, T]` of prose between the first two windows."""
  ids = np.asarray(tokenizer.encode(help_topics(), special=False), np.int32)
  start = len(ids) // max(2 * size.windows - 2, 2)
  return ids[None, start : start + min(512, size.context)]


def read_prose(tokenizer: Tokenizer, size: ProseSize) -> Reading:
  """Returns windows of prose, what comes next, and quotes of the windows."""
  ids = np.asarray(tokenizer.encode(help_topics(), special=False), np.int32)
  length = size.context + size.following + 1
  starts = np.linspace(0, len(ids) - length, size.windows).astype(int)
  windows = np.stack([ids[start : start + length] for start in starts])
  contexts = windows[:, : size.context]
  next_tokens = Part(
    'prose',
    windows[None, :, size.context : -1],
    windows[None, :, size.context + 1 :],
  )
  lead = np.asarray(tokenizer.encode('\n\n', special=False), np.int32)
  leads = np.broadcast_to(lead, (size.windows, len(lead)))
  tokens, targets = [], []
  for index in range(size.copies):
    at = int((index + 0.5) * size.context / size.copies)
    piece = contexts[:, at : at + size.quoted + size.copied]
    fed = np.concatenate([leads, piece[:, :-1]], axis=1)
    wanted = np.full_like(fed, NONE)
    wanted[:, -size.copied :] = piece[:, -size.copied :]
    tokens.append(fed)
    targets.append(wanted)
  copy = Part('copy', np.stack(tokens), np.stack(targets))
  return Reading('prose', contexts, (next_tokens, copy))


def draw_retrieval(
  tokenizer: Tokenizer, size: RetrievalSize, seed: int, numbers: Sequence[int]
) -> Reading:
  """Returns the contexts of some numbers, with their questions.

  Each hides its own digits in its own piece of prose, and depends on the seed
  and its number alone.
  """
  ids = tokenizer.encode(help_topics(), special=False)
  made = [
    _draw_context(tokenizer, size, ids, random.Random(f'{seed} {number}'))
    for number in numbers
  ]
  questions = [rows for _, rows in made]
  # Nothing is predicted behind the last digit.
  width = max(len(a) + len(b) - 1 for rows in questions for a, b in rows)
  shape = (size.numbers, len(made), width)
  tokens, targets = np.full(shape, NONE), np.full(shape, NONE)
  for row, pairs in enumerate(questions):
    for index, (before, digits) in enumerate(pairs):
      end = len(before) + len(digits)
      tokens[index, row, : end - 1] = (before + digits)[:-1]
      targets[index, row, len(before) - 1 : end - 1] = digits
  part = Part('retrieval', tokens.astype(np.int32), targets.astype(np.int32))
  contexts = np.asarray([context for context, _ in made], np.int32)
  return Reading(size.name, contexts, (part,))


def _draw_context(tokenizer, size, ids, draw):
  adjectives = draw.sample(ADJECTIVES.split(), size.numbers)
  nouns = draw.sample(NOUNS.split(), size.numbers)
  numbers = {
    f'{adjective} {noun}': str(draw.randrange(10_000, 100_000))
    for adjective, noun in zip(adjectives, nouns, strict=True)
  }
  start = draw.randrange(len(ids) - size.context)
  prose = ids[start : start + size.context]
  return hide_numbers(tokenizer, prose, numbers, size.context)


def with_question_inside(reading: Reading) -> Reading:
  """Returns contexts that end on their first question, without its answer.

  What compresses such a context knows the question. Shorter rows are
  padded by -1 on the right.
  """
  (part,) = reading.parts
  tokens, targets = part.tokens[0], part.targets[0]
  starts = (targets != NONE).argmax(axis=1)  # each predicts the first digit
  pairs = list(zip(range(len(starts)), starts, strict=True))
  contexts = [
    np.concatenate([reading.contexts[row], tokens[row, :start]])
    for row, start in pairs
  ]
  inside = Part(
    'question inside',
    _stack([tokens[row, start:] for row, start in pairs])[None],
    _stack([targets[row, start:] for row, start in pairs])[None],
  )
  return Reading(
    f'{reading.name}, question inside', _stack(contexts), (inside,)
  )


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
  width = max(map(len, rows))
  padded = [
    np.pad(row, (0, width - len(row)), constant_values=NONE) for row in rows
  ]
  return np.stack(padded)
