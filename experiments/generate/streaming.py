"""Text on a terminal as it is generated."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import numpy as np

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
    self._decoders = decoders
    self._stops = frozenset(stop_tokens)
    self._file = sys.stdout if file is None else file

  def feed(self, new: np.ndarray) -> None:
    """Takes int32 `[B, n]`; -1 is no token."""
    for row, tokens in enumerate(new.tolist()):
      before = self.stopped[row]
      for token in tokens:
        self._feed(row, token)
      if len(new) > 1 and self.stopped[row] and not before:
        self._show(row)

  def close(self) -> None:
    """Writes the rows that have not ended."""
    if len(self.texts) == 1:
      self._write('\n')
    for row, stopped in enumerate(self.stopped):
      if len(self.texts) > 1 and not stopped:
        self._show(row)

  def _feed(self, row: int, token: int) -> None:
    if token < 0 or self.stopped[row]:
      return
    self.tokens[row].append(token)
    if token in self._stops:
      self.stopped[row] = True
      return
    text = self._decoders[row](token)
    self.texts[row] += text
    if len(self.texts) == 1:
      self._write(text)

  def _write(self, text: str) -> None:
    self._file.write(text)
    self._file.flush()

  def _show(self, row: int) -> None:
    self._write(f'[{row + 1}] {self.texts[row]}\n')


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
  """Yields whether Ctrl-C was pressed; a second one ends the program."""
  pressed: list[int] = []

  def press(number: int, frame: object) -> None:
    del frame
    pressed.append(number)
    signal.signal(signal.SIGINT, before)

  before = signal.signal(signal.SIGINT, press)
  try:
    yield lambda: bool(pressed)
  finally:
    signal.signal(signal.SIGINT, before)
