"""Text on a terminal as it is generated."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from experiments.reporting.blocks import without_controls
from kvjax.text.tokenizer import Decode


class Streaming:
  """Takes tokens of B rows and writes their text as early as it is readable.

  A single row is written token by token; of several rows, each when it ends.
  """

  def __init__(
    self,
    decoders: Sequence[Decode],
    stop_tokens: Sequence[int] = (),
    file: TextIO | None = None,
  ):
    self.texts = [''] * len(decoders)
    self.tokens: list[list[int]] = [[] for _ in decoders]
    self.stopped = [False] * len(decoders)
    self.interrupted = False
    self._decoders = decoders
    self._stops = frozenset(stop_tokens)
    self._given_file = file

  def feed(self, new: np.ndarray) -> None:
    """Takes int32 `[B, n]`; -1 is no token."""
    for row, tokens in enumerate(new.tolist()):
      for token in tokens:
        if token >= 0 and not self.stopped[row]:
          self._feed(row, token)

  def close(self, interrupted: bool = False) -> None:
    """Writes the rows that have not ended."""
    self.interrupted = interrupted
    if len(self.texts) == 1:
      self._write('\n')
      return
    for row, stopped in enumerate(self.stopped):
      if not stopped:
        self._show(row)

  def records(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a record a row: prompt, text, tokens, and how it ended."""
    return [
      {
        'record': 'text',
        'prompt': prompt,
        'text': self.texts[row],
        'tokens': self.tokens[row],
        'stopped': self.stopped[row],
        'interrupted': self.interrupted and not self.stopped[row],
      }
      for row, prompt in enumerate(prompts)
    ]

  def _feed(self, row: int, token: int) -> None:
    self.tokens[row].append(token)
    is_single = len(self.texts) == 1
    if token in self._stops:
      self.stopped[row] = True
      if not is_single:
        self._show(row)
      return
    text = self._decoders[row](token)
    self.texts[row] += text
    if is_single:
      self._write(text)

  def _write(self, text: str) -> None:
    # A progress bar stands in for stdout while it is shown.
    file = self._given_file or sys.stdout
    file.write(without_controls(text))
    file.flush()

  def _show(self, row: int) -> None:
    self._write(f'[{row + 1}] {self.texts[row]}\n')


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
  """Yields whether Ctrl-C was pressed; a second one ends the program."""
  pressed = threading.Event()

  def press(*_: object) -> None:
    pressed.set()
    signal.signal(signal.SIGINT, before)

  before = signal.signal(signal.SIGINT, press)
  try:
    yield pressed.is_set
  finally:
    signal.signal(signal.SIGINT, before)
