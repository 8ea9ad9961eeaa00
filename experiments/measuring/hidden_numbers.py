"""Prose, and numbers hidden in prose that questions ask for, as token ids.

"Needles" of Kamradt 2023 and of RULER (Hsieh et al. 2024, arXiv 2404.06654).
"""

import pydoc_data.topics
from collections.abc import Mapping, Sequence

import numpy as np

from kvjax.text.tokenizer import Tokenizer

HEAD = 'Some special magic numbers are hidden in the following text. '
HEAD += 'Memorize them.\n\n'
NEEDLE = ' The special magic number for {key} is {value}.'
QUESTION = '\n\nWhat is the special magic number for {key}?'
ANSWER = 'The special magic number for {key} is'
MARK = '[context]'

Question = tuple[list[int], list[int]]  # ids before the digits, and the digits


def help_topics() -> str:
  """Returns prose that is on every machine: the topics of Python's own help.

  It differs between Python releases, so no golden number may depend on it.
  """
  return '\n\n'.join(pydoc_data.topics.topics.values())


def hide_numbers(
  tokenizer: Tokenizer,
  prose: Sequence[int],
  numbers: Mapping[str, str],
  length: int,
) -> tuple[list[int], list[Question]]:
  """Returns a context that hides numbers at even depths, and its questions.

  With a chat template the context is the beginning of a user's message, and a
  question is the rest of it and the beginning of the answer.

  Args:
    tokenizer: of the model.
    prose: ids to hide the numbers in, at least `length`.
    numbers: digits by the key that a question names.
    length: tokens of the context.

  Raises:
    ValueError: the context has no room for the numbers.
  """

  def encode(text):
    return tokenizer.encode(text, special=False)

  needles = [
    encode(NEEDLE.format(key=key, value=value))
    for key, value in numbers.items()
  ]
  head, tails = _frame(tokenizer, list(numbers))
  context = encode(head)
  room = length - len(context) - sum(map(len, needles))
  if room < len(numbers):
    raise ValueError(
      f'context={length} tokens have no room for {len(numbers)} numbers: '
      f'use at least {length - room + len(numbers)}.'
    )
  cuts = np.linspace(0, room, len(numbers) + 2).astype(int)[1:-1]
  used = 0
  for cut, needle in zip(cuts, needles, strict=True):
    context = context + list(prose[used:cut]) + needle
    used = cut
  context = context + list(prose[used:room])
  questions = []
  for (key, value), tail in zip(numbers.items(), tails, strict=True):
    before = tail + ANSWER.format(key=key)
    ids = encode(before)
    # The space before a number may be a token, or a part of its first digit's.
    with_digits = encode(f'{before} {value}')
    spaces = len(encode(f'{before} ')) - len(ids)
    first = len(ids) + max(spaces, 0)
    questions.append((with_digits[:first], with_digits[first:]))
  return context, questions


def _frame(tokenizer: Tokenizer, keys: list[str]) -> tuple[str, list[str]]:
  """Returns what stands before the context, and after it for each key."""
  questions = [QUESTION.format(key=key) for key in keys]
  if tokenizer.template is None:
    return HEAD, [f'{question}\n' for question in questions]
  chats = tokenizer.template.render(
    [
      [{'role': 'user', 'content': HEAD + MARK + question}]
      for question in questions
    ]
  )
  parts = [chat.split(MARK) for chat in chats]
  return parts[0][0], [tail for _, tail in parts]
