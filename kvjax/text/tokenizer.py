"""Text to ids and back: `tokenizer.json` of a checkpoint, or plain bytes."""

import codecs
import importlib
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

from kvjax.checkpoints.load import CONFIG, read_values
from kvjax.text.chat import Template, load_template

FILE = 'tokenizer.json'
GENERATION = 'generation_config.json'

Decode = Callable[[int], str]


class Tokenizer(Protocol):
  """Turns text into ids and ids into text."""

  @property
  def template(self) -> Template | None:
    """How a chat is written; None where the checkpoint has none."""
    ...

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    """Returns ids; with `special`, with what the model expects around them."""
    ...

  def stream(self) -> Decode:
    """Returns a function of one id after another: the text that each adds."""
    ...


class Bytes:
  """UTF-8: an id is a byte. What is no byte reads as the replacement mark."""

  template = None

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    del special
    return list(text.encode())

  def stream(self) -> Decode:
    decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def decode(token: int) -> str:
      if token < 256:
        return decoder.decode(bytes([token]))
      return decoder.decode(b'', final=True) + '\N{REPLACEMENT CHARACTER}'

    return decode


class Published:
  """The tokenizer of a checkpoint, through the library `tokenizers`."""

  def __init__(self, path: pathlib.Path):
    try:
      library: Any = importlib.import_module('tokenizers')
    except ImportError:
      raise ValueError(
        f'{path / FILE} is read by the library tokenizers, which is not '
        "installed. Install kvjax with its extra: pip install 'kvjax[hf]'."
      ) from None
    try:
      self._tokenizer = library.Tokenizer.from_file(str(path / FILE))
    except Exception as error:  # the library raises no narrower one
      raise ValueError(f'{path / FILE} is no tokenizer: {error}.') from None
    self.template = load_template(path)

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=special).ids

  def stream(self) -> Decode:
    decoders: Any = importlib.import_module('tokenizers.decoders')
    stream = decoders.DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(self._tokenizer, token) or ''


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
  """Returns the tokenizer of a checkpoint directory; bytes if it has none.

  Raises:
    ValueError: `tokenizer.json` or a chat template cannot be read, or the
      library that reads it is missing.
  """
  path = pathlib.Path(path)
  return Published(path) if (path / FILE).is_file() else Bytes()


def stop_tokens(path: str | pathlib.Path) -> tuple[int, ...]:
  """Returns the ids after which a checkpoint says that text ends.

  Those of `generation_config.json`, or else of config.json.

  Raises:
    ValueError: one of them is no JSON object.
  """
  for name in (GENERATION, CONFIG):
    file = pathlib.Path(path) / name
    if not file.is_file():
      continue
    found = read_values(file).get('eos_token_id')
    if found is not None:
      return tuple(found) if isinstance(found, list) else (found,)
  return ()


def start_token(path: str | pathlib.Path) -> int:
  """Returns the id with which the decoder of an encoder-decoder begins.

  Raises:
    ValueError: config.json does not say.
  """
  file = pathlib.Path(path) / CONFIG
  found = read_values(file).get('decoder_start_token_id')
  if found is None:
    raise ValueError(f'{file} has no decoder_start_token_id to begin with.')
  return found
