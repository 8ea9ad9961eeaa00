"""Text to ids and back: the tokenizer of a checkpoint, or plain bytes."""

import codecs
import importlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kvjax.arguments import LARGEST, is_whole
from kvjax.checkpoints.files import errors_name, is_present
from kvjax.checkpoints.gguf.header import is_gguf, read_header
from kvjax.checkpoints.load import CONFIG, read_values
from kvjax.checkpoints.names import TEXT_FILES, find_model
from kvjax.text.chat import Template, load_template
from kvjax.text.gguf_tokenizer import read_tokenizer, stop_ids

FILE = 'tokenizer.json'
GENERATION = 'generation_config.json'

Decode = Callable[[int], str]


class Tokenizer(Protocol):
  """Turns text into ids and ids into text."""

  template: Template | None  # of chats; None where the checkpoint has none

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    """Returns ids.

    Args:
      text: to encode.
      special: add the tokens that the model expects around a text.
    """
    ...

  def stream(self) -> Decode:
    """Returns a function of one id after another.

    The function returns the text that an id adds to those before, empty where
    a character is not complete yet.
    """
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids, such as `tokens[0].tolist()` of `generate`.

    Negative ids, which a row has after its end, are left out.
    """
    return ''.join(map(self.stream(), (i for i in ids if i >= 0)))

  def save(self, path: pathlib.Path) -> None:
    """Writes files into a directory, from which `load_tokenizer` reads it."""
    ...


class ByteTokenizer(Tokenizer):
  """UTF-8: an id is a byte; larger ids read as the replacement mark."""

  template: Template | None = None

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    del special  # there are none
    return list(text.encode())

  def stream(self) -> Decode:
    decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def decode(token: int) -> str:
      if token < 256:
        return decoder.decode(bytes([token]))
      # Ends a character that the bytes before left incomplete.
      return decoder.decode(b'', final=True) + '\N{REPLACEMENT CHARACTER}'

    return decode

  def save(self, path: pathlib.Path) -> None:
    del path  # a directory without tokenizer.json reads as bytes


class PublishedTokenizer(Tokenizer):
  """The tokenizer of a checkpoint, through the library `tokenizers`."""

  def __init__(self, path: pathlib.Path):
    """Reads `tokenizer.json` of a directory, or the metadata of a GGUF file."""
    self._file = path if is_gguf(path) else path / FILE
    try:
      library: Any = importlib.import_module('tokenizers')
    except ImportError:
      raise ValueError(
        f'{self._file} is read by the library tokenizers, which is not '
        "installed. Install kvjax with its extra: pip install 'kvjax[hf]'."
      ) from None
    if is_gguf(path):
      self._tokenizer = read_tokenizer(path)
    else:
      self._tokenizer = _read_json(library, self._file)
    self.template = load_template(path)
    self._stops = stop_tokens(path)

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    try:
      return self._tokenizer.encode(text, add_special_tokens=special).ids
    except Exception as error:  # of a vocabulary without its unknown token, say
      raise ValueError(
        f'{self._file} cannot encode {text[:40]!r}: {error}.'
      ) from None

  def stream(self) -> Decode:
    decoders: Any = importlib.import_module('tokenizers.decoders')
    stream = decoders.DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(self._tokenizer, token) or ''

  def save(self, path: pathlib.Path) -> None:
    self._tokenizer.save(str(path / FILE))
    if self._stops:
      values = {'eos_token_id': list(self._stops)}
      (path / GENERATION).write_text(json.dumps(values), encoding='utf-8')
    if self.template is not None:
      self.template.save(path)


def _read_json(library: Any, file: pathlib.Path) -> Any:
  try:
    return library.Tokenizer.from_file(str(file))
  except Exception as error:  # the library raises no narrower class
    raise ValueError(f'{file} is no tokenizer: {error}.') from None


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Returns the tokenizer of a checkpoint; bytes if it has none.

  Args:
    path: a directory, a `.gguf` file, or a name as in `kvjax.load_checkpoint`.

  Raises:
    FileNotFoundError: a name stands for no model.
    ValueError: `tokenizer.json`, the file's metadata or a chat template cannot
      be read, or the library that reads it is missing.
  """
  path = find_model(path, TEXT_FILES)
  if is_gguf(path) or is_present(path / FILE):
    return PublishedTokenizer(path)
  if not path.is_dir():
    raise FileNotFoundError(
      f'{path} is no directory: give that of a checkpoint, or a .gguf file.'
    )
  return ByteTokenizer()


def stop_tokens(path: str | pathlib.Path) -> tuple[int, ...]:
  """Returns the ids after which a checkpoint says that text ends.

  They are read from `generation_config.json`, or else from config.json; none
  where neither names one. A `.gguf` file has them in its metadata.

  Raises:
    ValueError: one of the files is no JSON object, or `eos_token_id` names no
      token of the model.
  """
  path = find_model(path, TEXT_FILES)
  if is_gguf(path):
    with errors_name(path):
      return stop_ids(read_header(path).metadata)
  for name in (GENERATION, CONFIG):
    file = path / name
    if not is_present(file):
      continue
    ids = read_values(file).get('eos_token_id')
    if ids is not None:
      ids = ids if isinstance(ids, list) else [ids]
      return tuple(_check_id(file, 'eos_token_id', token) for token in ids)
  return ()


def start_token(path: str | pathlib.Path) -> int:
  """Returns the id with which the decoder of an encoder-decoder begins.

  Raises:
    ValueError: config.json does not say, or names no token of the model.
  """
  path = find_model(path, TEXT_FILES)
  if is_gguf(path):
    raise ValueError(f'{path} names no token that an answer begins with.')
  file = path / CONFIG
  token = read_values(file).get('decoder_start_token_id')
  if token is None:
    raise ValueError(f'{file} has no decoder_start_token_id to begin with.')
  return _check_id(file, 'decoder_start_token_id', token)


def _check_id(file: pathlib.Path, key: str, token: Any) -> int:
  """Returns an id that a file names; ValueError unless the model knows it."""
  config = file.with_name(CONFIG)
  values = read_values(config) if is_present(config) else {}
  known: Any = values.get('vocab_size')
  size = known if is_whole(known, 1) else LARGEST + 1
  if not is_whole(token, 0, size - 1):
    raise ValueError(
      f'{file}: {key} has {token!r}; an id is an integer from 0 to {size - 1}.'
    )
  return token
