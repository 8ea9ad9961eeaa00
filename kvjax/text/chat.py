"""The chat template of a checkpoint: messages in, the text it expects out.

Templates are Jinja, as published in `chat_template.jinja` or in
`tokenizer_config.json`. They are rendered in a sandbox within a process of
limited time and memory, with the functions that published templates use:
`raise_exception`, `strftime_now`, `tojson`, `{% break %}`.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kvjax.checkpoints.files import errors_name, is_present, read_text
from kvjax.checkpoints.gguf.header import is_gguf
from kvjax.checkpoints.load import read_values
from kvjax.text import rendering
from kvjax.text.gguf_vocabulary import read_vocabulary

FILE = 'chat_template.jinja'
CONFIG = 'tokenizer_config.json'
SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
GGUF_SPECIAL = ('bos', 'eos', 'unknown', 'padding')
SECONDS = 5.0  # of computing, for one chat
BYTES = 1 << 30  # of memory
CHARACTERS = 1 << 24  # of one text
WAIT = 60.0  # seconds that a process may take beyond its limit, on a busy host
# Without these a Python may not start, or knows another time of day. No other
# variable of the environment is there to be read by a template.
VARIABLES = ('SYSTEMROOT', 'LD_LIBRARY_PATH', 'TZ')

Message = Mapping[str, str]
"""One turn of a conversation: `role` and `content`."""


@dataclasses.dataclass(frozen=True)
class Template:
  """A chat template.

  Attributes:
    source: Jinja.
    names: special tokens by the names that templates use.
    origin: where the template is from, for messages.
  """

  source: str
  names: tuple[tuple[str, str], ...] = ()
  origin: str = 'given'

  def __call__(self, messages: Sequence[Message]) -> str:
    """Returns the text of one chat, as `render` does."""
    return self.render([messages])[0]

  def render(self, chats: Sequence[Sequence[Message]]) -> list[str]:
    """Returns the text of each chat, up to where the model answers.

    One process renders all chats.

    Args:
      chats: messages, each with `role` ('system', 'user', 'assistant') and
        `content`.

    Raises:
      ValueError: the template is broken, refuses these messages, or needs more
        time or memory than any chat does.
    """
    if importlib.util.find_spec('jinja2') is None:
      raise ValueError(
        'A chat template is rendered by the library jinja2, which is not '
        "installed. Install kvjax with its extra: pip install 'kvjax[hf]'."
      )
    try:
      request = json.dumps(
        {
          'source': self.source,
          'names': dict(self.names),
          'chats': [[dict(message) for message in chat] for chat in chats],
          'path': sys.path,
          'seconds': SECONDS,
          'bytes': BYTES,
          'characters': CHARACTERS,
        }
      )
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'Messages of a chat must be objects of JSON: {error}.'
      ) from None
    reply = _run(request.encode(), WAIT + SECONDS * len(chats))
    if 'error' in reply:
      raise ValueError(
        f'The {self.origin} chat template refuses: {reply["error"]}.'
      )
    return reply['texts']

  def save(self, path: pathlib.Path) -> None:
    """Writes files into a directory, from which `load_template` reads it."""
    (path / FILE).write_text(self.source, encoding='utf-8')
    (path / CONFIG).write_text(json.dumps(dict(self.names)), encoding='utf-8')


def load_template(path: pathlib.Path) -> Template | None:
  """Returns the default template of a checkpoint, if it has one.

  Args:
    path: a directory, or a `.gguf` file.

  Raises:
    ValueError: a file is no regular file, or `tokenizer_config.json` is no
      JSON object or has a template or a special token of another type.
  """
  if is_gguf(path):
    with errors_name(path):
      return _gguf_template(path)
  config, file = path / CONFIG, path / FILE
  values = read_values(config) if is_present(config) else {}
  source, origin = _default_source(config, values.get('chat_template')), config
  if is_present(file):
    source, origin = read_text(file), file
  if source is None:
    return None
  texts = {name: _special_token(config, values, name) for name in SPECIAL}
  names = tuple(
    (name, text) for name, text in texts.items() if text is not None
  )
  return Template(source, names, str(origin))


def _gguf_template(path: pathlib.Path) -> Template | None:
  vocabulary = read_vocabulary(path)
  if (source := vocabulary.metadata.get('tokenizer.chat_template')) is None:
    return None
  if not isinstance(source, str):
    raise ValueError('tokenizer.chat_template must be a text.')
  texts = {
    name: vocabulary.special_token(spelled)
    for name, spelled in zip(SPECIAL, GGUF_SPECIAL, strict=True)
  }
  names = tuple((k, text) for k, text in texts.items() if text is not None)
  return Template(source, names, str(path))


def _run(request: bytes, seconds: float) -> dict[str, Any]:
  """Returns the reply of a process to a request of `rendering`."""
  try:
    done = subprocess.run(
      [sys.executable, '-I', '-S', rendering.__file__],
      input=request,
      capture_output=True,
      env={x: os.environ[x] for x in VARIABLES if x in os.environ},
      timeout=seconds,
    )
  except subprocess.TimeoutExpired:
    return {'error': f'it takes more than {seconds} s'}
  if done.returncode and done.returncode == -getattr(signal, 'SIGPROF', 0):
    return {'error': f'it computes for more than {SECONDS} s'}
  if done.returncode:
    last = done.stderr.decode(errors='replace').strip()[-500:]
    return {'error': f'its process ended with {done.returncode} {last}'}
  return json.loads(done.stdout)


def _default_source(config: pathlib.Path, source: Any) -> str | None:
  """Returns the template that is named 'default', where there are several."""
  if source is None or isinstance(source, str):
    return source
  if not isinstance(source, list) or not all(map(_is_named, source)):
    raise ValueError(
      f'{config}: chat_template must be Jinja, or a list of objects with a '
      '"name" and a "template", both texts. Publish it anew, or remove it.'
    )
  return {x['name']: x['template'] for x in source}.get('default')


def _is_named(template: Any) -> bool:
  return isinstance(template, dict) and all(
    isinstance(template.get(key), str) for key in ('name', 'template')
  )


def _special_token(
  config: pathlib.Path, values: Mapping[str, Any], name: str
) -> str | None:
  token = values.get(name)
  text = token.get('content') if isinstance(token, dict) else token
  if token is not None and not isinstance(text, str):
    raise ValueError(
      f'{config}: {name}={token!r} must be a text, or an object whose '
      '"content" is one.'
    )
  return text
