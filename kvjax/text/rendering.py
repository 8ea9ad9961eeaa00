"""Renders a chat template: a program that another process runs and can end.

  python -I -S rendering.py < request.json > reply.json

A template comes with a checkpoint, so others wrote it. The sandbox of jinja2
keeps a template from Python's objects, and bounds neither its time nor its
memory: loops in loops, `'%099999999999d'`, a text that doubles in a loop, a
filter with a width. Bounds for every operator, filter and method of strings
would have gaps, and no thread can stop another one inside such a call. The
system bounds a process as a whole, whatever it does. The process also starts
without the variables of its parent's environment.

This file imports nothing of kvjax, which would take seconds in each process.
"""

import importlib
import json
import sys
import time
from typing import Any

LONGEST_ERROR = 500  # characters


def main() -> None:
  """Reads a request from standard input, and writes the text of every chat.

  The request is an object of `source`, `chats`, `names` (the special tokens),
  `path` (where jinja2 is), `seconds` (of a chat), `bytes` (of the process) and
  `characters` (of a text). The reply is `{"texts": [...]}` or `{"error": ...}`.
  """
  request = json.load(sys.stdin)
  sys.path[:] = request['path']
  jinja2: Any = importlib.import_module('jinja2')
  try:
    reply = {'texts': _render(request)}
  except jinja2.TemplateError as error:
    reply = {'error': str(error)[:LONGEST_ERROR]}
  except MemoryError:
    reply = {'error': f'it needs more than {request["bytes"]} bytes of memory'}
  except Exception as error:  # a template can raise anything
    message = f'{type(error).__name__} {error}'
    reply = {'error': message[:LONGEST_ERROR].strip()}
  json.dump(reply, sys.stdout)


def _render(request: dict[str, Any]) -> list[str]:
  environment = _environment()
  _limit_memory(request['bytes'])
  _limit_time(request['seconds'])
  template = environment.from_string(request['source'])
  texts = []
  for messages in request['chats']:
    _limit_time(request['seconds'])
    text = template.render(
      messages=messages, add_generation_prompt=True, **request['names']
    )
    if len(text) > request['characters']:
      raise ValueError(f'writes more than {request["characters"]} characters')
    texts.append(text)
  return texts


def _limit_time(seconds: float) -> None:
  """Lets the system end this process once it has computed that long."""
  try:
    signal: Any = importlib.import_module('signal')
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
  except AttributeError:
    pass  # a system without this timer: the parent ends the process


def _limit_memory(size: int) -> None:
  try:
    resource: Any = importlib.import_module('resource')
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
  except (ImportError, OSError, ValueError):
    pass  # a system without this limit: the time bounds the memory


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


if __name__ == '__main__':
  main()
