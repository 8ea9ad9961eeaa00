"""What the model reads: prose, and numbers hidden in prose, as token ids.

A context is compressed before its questions are known. Then prose goes on, or a
question asks for one of the numbers.
"""

import dataclasses
import random

import numpy as np

from experiments.measuring.hidden_numbers import help_topics, hide_numbers
from kvjax.decoding.allocate import check_sizes
from kvjax.text.tokenizer import Tokenizer

ADJECTIVES = ('amber', 'brisk', 'calm', 'dusty', 'eager', 'faint', 'gentle')
NOUNS = ('falcon', 'river', 'lantern', 'bridge', 'teapot', 'garden', 'rocket')


@dataclasses.dataclass(frozen=True)
class Size:
  """How long the task is.

  Attributes:
    context: tokens of each row that are compressed.
    texts: rows of prose.
    following: tokens of prose after the context.
    numbers: hidden in the context of the last row, at even depths.
  """

  context: int
  texts: int
  following: int
  numbers: int

  def __post_init__(self):
    check_sizes(**dataclasses.asdict(self))
    if self.numbers > len(ADJECTIVES):
      raise ValueError(
        f'numbers={self.numbers} must be at most {len(ADJECTIVES)}.'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Contexts, and what follows each.

  Attributes:
    contexts: int32 `[R, T]`: rows of prose, then the row that hides numbers.
    row: int32 `[N]`, the context that each continuation follows.
    following: int32 `[N, L]`: of each row of prose its next tokens, then the
      questions with their answers, all of the last context; -1 is no token.
    is_digit: bool `[N, L]`, which of these are digits of an answer.
    tokens_per_byte: of the prose.
    other: int32 `[1, T]`, prose that no context has, to measure constants on.
  """

  contexts: np.ndarray
  row: np.ndarray
  following: np.ndarray
  is_digit: np.ndarray
  tokens_per_byte: float
  other: np.ndarray

  @property
  def capacity(self) -> int:
    """Tokens of the longest row, its continuation included."""
    return self.contexts.shape[1] + self.following.shape[1]

  @property
  def is_prose(self) -> np.ndarray:
    """Which of `following` are prose, bool `[N, L]`."""
    prose = self.row < len(self.contexts) - 1
    return prose[:, None] & (self.following >= 0)


def make_task(tokenizer: Tokenizer, size: Size, seed: int) -> Task:
  """Returns a task; its prose is of the topics of Python's own help.

  The text differs between Python releases, so no golden number may depend on
  it.

  Raises:
    ValueError: the context has no room for the numbers.
  """
  prose = help_topics()
  ids = tokenizer.encode(prose, special=False)
  length = size.context + size.following
  starts = np.linspace(0, len(ids) - length, size.texts + 2).astype(int)[1:]
  texts = [ids[start : start + length] for start in starts]
  numbers = _draw_numbers(random.Random(seed), size.numbers)
  context, questions = hide_numbers(
    tokenizer, texts.pop(), numbers, size.context
  )
  rows = [text[size.context :] for text in texts]
  rows += [question + digits for question, digits in questions]
  width = max(map(len, rows))
  following = np.full((len(rows), width), -1, np.int32)
  is_digit = np.zeros((len(rows), width), bool)
  for index, row in enumerate(rows):
    following[index, : len(row)] = row
  for index, (question, digits) in enumerate(questions, size.texts):
    is_digit[index, len(question) : len(question) + len(digits)] = True
  return Task(
    contexts=np.asarray(
      [*(text[: size.context] for text in texts), context], np.int32
    ),
    row=np.minimum(np.arange(len(rows)), size.texts).astype(np.int32),
    following=following,
    is_digit=is_digit,
    tokens_per_byte=len(ids) / len(prose.encode()),
    other=np.asarray([ids[: size.context]], np.int32),
  )


def _draw_numbers(draw: random.Random, count: int) -> dict[str, str]:
  """Returns numbers of five digits by the names that questions use."""
  adjectives = draw.sample(ADJECTIVES, count)
  nouns = draw.sample(NOUNS, count)
  keys = [f'{a} {n}' for a, n in zip(adjectives, nouns, strict=True)]
  return {key: str(draw.randrange(10_000, 100_000)) for key in keys}
