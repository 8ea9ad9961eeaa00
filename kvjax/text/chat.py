"""The chat template of a checkpoint: messages in, the text it expects out.

Templates are Jinja, as published in `chat_template.jinja` or in
`tokenizer_config.json`. They are rendered in a sandbox, with the functions that
published templates use: `raise_exception`, `strftime_now`, `tojson`,
`{% break %}`.
"""

import dataclasses
import importlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kvjax.checkpoints.load import read_values

FILE = 'chat_template.jinja'
CONFIG = 'tokenizer_config.json'
SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Template:
  """A chat template.

  Attributes:
    source: Jinja.
    names: special tokens by the names that templates use.
  """

  source: str
  names: tuple[tuple[str, str], ...] = ()

  def __call__(self, messages: Sequence[Message]) -> str:
    """Returns the text up to where the model answers.

    Args:
      messages: each with `role` ('system', 'user', 'assistant') and `content`.

    Raises:
      ValueError: the template is broken, or refuses these messages.
    """
    try:
      jinja2: Any = importlib.import_module('jinja2')
    except ImportError:
      raise ValueError(
        'A chat template is rendered by the library jinja2, which is not '
        "installed. Install kvjax with its extra: pip install 'kvjax[hf]'."
      ) from None
    try:
      template = _environment().from_string(self.source)
      return template.render(
        messages=list(messages),
        add_generation_prompt=True,
        **dict(self.names),
      )
    except (jinja2.TemplateError, TypeError) as error:
      raise ValueError(f'The chat template refuses: {error}.') from None


def load_template(path: pathlib.Path) -> Template | None:
  """Returns the default template of a checkpoint directory, if it has one.

  Raises:
    ValueError: `tokenizer_config.json` is no JSON object.
  """
  config = path / CONFIG
  values = read_values(config) if config.is_file() else {}
  source = values.get('chat_template')
  if isinstance(source, list):  # several, by name
    named = {x['name']: x['template'] for x in source}
    source = named.get('default')
  if (path / FILE).is_file():
    source = (path / FILE).read_text(encoding='utf-8')
  if not source:
    return None
  names = {k: _text(values[k]) for k in SPECIAL if values.get(k)}
  return Template(source, tuple(names.items()))


def _text(token: Any) -> str:
  return token['content'] if isinstance(token, dict) else token


def _environment() -> Any:
  jinja2: Any = importlib.import_module('jinja2')
  sandbox: Any = importlib.import_module('jinja2.sandbox')

  def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

  def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
  ) -> str:
    # A template cannot pass default= or cls=, because json.dumps would call
    # these outside the sandbox.
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )
  environment.filters['tojson'] = to_json
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = time.strftime
  return environment
