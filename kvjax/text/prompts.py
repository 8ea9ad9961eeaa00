"""Prompts for a model: text, perhaps written as a chat, to a ragged batch."""

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Sequence

import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_type, is_whole
from kvjax.checkpoints.files import local_path, read_text
from kvjax.models.config import ModelConfig, check_config
from kvjax.strict_json import parse_json
from kvjax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """Rows of ids, padded on the right.

  Attributes:
    tokens: int32 `[B, T]`.
    lengths: int32 `[B]`, tokens of each row.
  """

  tokens: np.ndarray
  lengths: np.ndarray

  @property
  def ids(self) -> jnp.ndarray:
    """The tokens as an array of JAX, for `prefill`."""
    return jnp.asarray(self.tokens)


def read_prompts(path: str | pathlib.Path) -> list[str]:
  """Returns the prompts of a file.

  Args:
    path: of a file with a prompt a line, empty lines apart; a `.jsonl` file has
      a JSON string a line.

  Raises:
    ValueError: a line is no JSON string, there is no prompt, or the file is
      no UTF-8.
  """
  path = local_path(path)
  prompts = []
  # str.splitlines would cut a prompt at U+0085, U+2028 and U+2029 as well.
  for number, line in enumerate(read_text(path).split('\n'), 1):
    if not line.strip():
      continue
    if path.suffix == '.jsonl':
      try:
        line = parse_json(line, path)
      except ValueError:
        line = None
      if not isinstance(line, str):
        raise ValueError(
          f'{path}:{number} is no JSON string: write "a prompt".'
        )
    prompts.append(line)
  if not prompts:
    raise ValueError(f'{path} holds no prompt: write one a line.')
  return prompts


def encode_prompts(
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  chat: bool | None = None,
  system: str | None = None,
) -> list[list[int]]:
  """Returns the ids of each prompt.

  Args:
    tokenizer: of the checkpoint.
    prompts: at least one.
    chat: write prompts through the chat template; None for "if there is a
      template".
    system: instruction that a chat begins with; None for no instruction.

  Raises:
    ValueError: a prompt has no token, or there is no template to chat with.
  """
  template = tokenizer.template
  if chat is None:
    chat = template is not None
  if (chat or system) and template is None:
    raise ValueError(
      'The checkpoint has no chat template (chat_template.jinja, or '
      'chat_template in tokenizer_config.json). Prompt without chat.'
    )
  if chat and template is not None:
    instruction = [{'role': 'system', 'content': system}] if system else []
    prompts = template.render(
      [[*instruction, {'role': 'user', 'content': text}] for text in prompts]
    )
  rows = []
  for text in prompts:
    # A template writes the special tokens itself.
    ids = tokenizer.encode(text, special=not chat)
    if not ids:
      raise ValueError(f'The prompt {text!r} has no token. Write something.')
    rows.append(ids)
  return rows


def make_batch(config: ModelConfig, rows: Sequence[Sequence[int]]) -> Batch:
  """Returns rows of ids as a batch.

  Args:
    config: the model that reads the batch.
    rows: ids of each row; rows may differ in length.

  Raises:
    ValueError: there is no id, or one is no integer of the vocabulary.
  """
  check_config(config)
  for part in (rows, *(rows if isinstance(rows, Collection) else ())):
    check_type('rows or a row', part, Collection, 'give lists of ids.')
  lengths = np.asarray([len(row) for row in rows], np.int32)
  if not lengths.any():
    raise ValueError('The rows hold no token. Give a row of ids a prompt.')
  for token in itertools.chain.from_iterable(rows):
    if not is_whole(token) or token < 0:
      raise ValueError(
        f'The prompt has the token {token!r}: ids are integers from 0 to '
        f'{config.vocab_size - 1}.'
      )
  tokens = np.zeros((len(rows), lengths.max()), np.int32)
  for index, row in enumerate(rows):
    tokens[index, : len(row)] = row
  if tokens.max() >= config.vocab_size:
    raise ValueError(
      f'The prompt has the token {tokens.max()}, but the model knows '
      f'{config.vocab_size}: 0 to {config.vocab_size - 1}. The checkpoint '
      'needs its own tokenizer.json, or other text.'
    )
  return Batch(tokens, lengths)


def check_reads_text(config: ModelConfig) -> None:
  """Raises ValueError for an encoder that reads frames of sound.

  Args:
    config: the model.
  """
  encoder = config.encoder
  if encoder is not None and encoder.features is not None:
    raise ValueError(
      f'The encoder reads frames of {encoder.features} features, and no '
      'text: call kvjax.encode with features.'
    )
