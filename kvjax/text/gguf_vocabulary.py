"""The vocabulary that the metadata of a GGUF file describes.

A file has tokens, each with a type and maybe a score, and ids of special
tokens; what these mean is in llama.cpp (github.com/ggml-org/llama.cpp,
src/llama-vocab.cpp).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvjax.checkpoints.gguf.header import read_header

KEY = 'tokenizer.ggml.'
# Types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
# Ids of SentencePiece where no key says otherwise.
SENTENCEPIECE_IDS = {'unknown': 0, 'bos': 1, 'eos': 2}
# Text ends with these too: files name one end, and models of chats have more.
ENDS = frozenset(
  '<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> '
  '<|endoftext|> <|end_of_text|>'.split()
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokens, and what else a file says of its tokenizer.

  Attributes:
    metadata: of the file.
    ids: by token.
    types: by id.
    scores: by id.
  """

  metadata: Mapping[str, Any]
  ids: Mapping[str, int]
  types: Sequence[int]
  scores: Sequence[float]

  @property
  def architecture(self) -> str:
    return str(self.metadata.get('general.architecture'))

  def get(self, key: str, default: Any = None) -> Any:
    """Returns what the file says of its tokenizer under a key."""
    return self.metadata.get(KEY + key, default)

  def special_id(self, name: str) -> int | None:
    """Returns the id of a special token; None if the file has none.

    Args:
      name: 'bos', 'eos', 'unknown' or 'padding'.

    Raises:
      ValueError: there is no token of that id.
    """
    is_sentencepiece = self.get('model') == 'llama'
    default = SENTENCEPIECE_IDS.get(name) if is_sentencepiece else None
    index = self.get(f'{name}_token_id', default)
    count = len(self.types)
    if index is not None and (type(index) is not int or not 0 <= index < count):
      raise ValueError(
        f'{KEY}{name}_token_id={index!r} is no id: there are {count} tokens.'
      )
    return index

  def special_token(self, name: str) -> str | None:
    """Returns the text of a special token, as `special_id`."""
    index = self.special_id(name)
    return None if index is None else self.get('tokens')[index]

  def stop_ids(self) -> tuple[int, ...]:
    """Returns the ids after which a text ends."""
    ends = ENDS & self.ids.keys()
    # gpt-oss ends each of its messages with <|end|>, and a text otherwise.
    if {'<|return|>', '<|call|>'} <= ends:
      ends -= {'<|end|>'}
    ids = {self.special_id(name) for name in ('eos', 'eot', 'eom')}
    ids |= {
      self.ids[text]
      for text in ends
      if self.types[self.ids[text]] in (CONTROL, USER_DEFINED)
    }
    return tuple(sorted(index for index in ids if index is not None))


def read_vocabulary(path: pathlib.Path) -> Vocabulary:
  """Returns the vocabulary of a file.

  Raises:
    ValueError: the file has no tokens, or describes them badly.
  """
  metadata = read_header(path).metadata
  tokens = metadata.get(f'{KEY}tokens')
  if not isinstance(tokens, list) or not tokens:
    raise ValueError(f'it has no tokens: {KEY}tokens lists none.')
  ids = {text: index for index, text in enumerate(tokens)}
  if len(ids) < len(tokens):
    raise ValueError(f'a token of {KEY}tokens is there twice.')
  columns = []
  for key, default in (('token_type', NORMAL), ('scores', 0.0)):
    column = metadata.get(KEY + key, np.full(len(tokens), default))
    if not isinstance(column, np.ndarray) or len(column) != len(tokens):
      raise ValueError(
        f'{KEY}{key} must be {len(tokens)} numbers, one for each token.'
      )
    columns.append(column.tolist())
  return Vocabulary(metadata, ids, *columns)
