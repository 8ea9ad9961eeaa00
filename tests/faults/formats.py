"""Files that kvjax parses, and the parsers that are the reference for each.

The functions of a `Format` run in a process of their own, on a folder that has
one changed file. `read` is kvjax's parser and `reference` the one it follows;
both return what the file means as plain values, and no array reaches a device.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jinja2.sandbox
import numpy as np
import safetensors.numpy
import tokenizers

import kvjax
from experiments.reporting import records
from kvjax.checkpoints.files import errors_name
from kvjax.checkpoints.gguf import blocks, header
from kvjax.checkpoints.load import open_checkpoint, parse_config
from kvjax.checkpoints.tensors import open_tensors
from kvjax.display import compact
from kvjax.text import chat, load_tokenizer, prompts, stop_tokens
from tests.checkpoints import gguf_writing
from tests.checkpoints.writing import GOLDEN
from tests.faults import mutations

TEXTS = ('HELLO WORLD', 'a b', '')
MODELS = {name: GOLDEN / name for name in ('qwen2', 'llama_linear_shards')}
QWEN2 = kvjax.load_checkpoint(MODELS['qwen2'])


@dataclasses.dataclass(frozen=True)
class Format:
  """A kind of file.

  Attributes:
    name: of the file that is changed.
    write: fills a folder with the file and what belongs to it.
    changes: of the file's bytes.
    read: folder -> what kvjax reads.
    reference: folder -> what the file means; None where every change must be
      refused.
  """

  name: str
  write: Callable[[pathlib.Path], None]
  changes: tuple[Callable[..., bytes], ...]
  read: Callable[[pathlib.Path], Any]
  reference: Callable[[pathlib.Path], Any] | None


def copy_model(name: str) -> Callable[[pathlib.Path], None]:
  def write(folder):
    shutil.copytree(MODELS[name], folder, dirs_exist_ok=True)

  return write


def read_tensors(folder: pathlib.Path) -> Any:
  return _meaning({n: t.read() for n, t in open_tensors(folder).items()})


def official_tensors(folder: pathlib.Path) -> Any:
  with safetensors.safe_open(folder / 'model.safetensors', 'np') as file:
    return _meaning({name: file.get_tensor(name) for name in file.keys()})


def _meaning(arrays: dict[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
  return {
    name: (x.shape, x.dtype.name, hashlib.sha256(x.tobytes()).hexdigest())
    for name, x in arrays.items()
  }


def read_model(folder: pathlib.Path) -> Any:
  """Returns config and params as the files say, every param read once."""
  config, sources = open_checkpoint(folder)
  return compact(config), _meaning({s.place: s.read() for s in sources})


def same_model(name: str) -> Callable[[pathlib.Path], Any]:
  """Returns the reference of a file that can only say one thing, or nothing."""
  wanted = functools.cache(lambda: read_model(MODELS[name]))
  return lambda folder: wanted()


# Of the golden config, where each number must appear unchanged.
FIELDS: dict[str, Callable[[kvjax.ModelConfig], Any]] = {
  'vocab_size': lambda config: config.vocab_size,
  'hidden_size': lambda config: config.width,
  'num_hidden_layers': lambda config: len(config.layers),
  'num_attention_heads': lambda config: config.layers[0].attention.num_heads,
  'num_key_value_heads': lambda config: config.layers[0].attention.num_kv_heads,
  'intermediate_size': lambda config: config.layers[0].mlp.hidden,
  'hidden_act': lambda config: config.layers[0].mlp.activation,
  'rope_theta': lambda config: config.layers[0].attention.rotary.base,
  'rms_norm_eps': lambda config: config.norm.eps,
  'tie_word_embeddings': lambda config: config.tied,
  'torch_dtype': lambda config: config.dtype,
}


def read_config(folder: pathlib.Path) -> Any:
  config = kvjax.load_config(folder)
  values = _json_of(folder / 'config.json')
  fields = {
    k: f(config) for k, f in FIELDS.items() if values.get(k) is not None
  }
  attention = [layer.attention for layer in config.layers]
  windows = [x.visibility.window for x in attention]
  return repr(config), fields, windows, [x.key_width for x in attention]


def config_of_json(folder: pathlib.Path) -> Any:
  """Returns the same by kvjax's parser, and by formulas without it."""
  values = _json_of(folder / 'config.json')
  fields = {k: values[k] for k in FIELDS if values.get(k) is not None}
  if 'rope_theta' in fields:
    fields['rope_theta'] = float(fields['rope_theta'])
  count = values['num_hidden_layers']
  window = values.get('sliding_window', 4096)
  first = values.get('max_window_layers')
  first = 28 if first is None else first
  has_window = values.get('use_sliding_window')
  windows = [
    window if has_window and i >= first else None for i in range(count)
  ]
  width = values['hidden_size'] // values['num_attention_heads']
  return repr(parse_config(values)), fields, windows, [width] * count


def _json_of(file: pathlib.Path) -> Any:
  return json.loads(file.read_bytes().decode())


def write_cache(folder: pathlib.Path) -> None:
  config, params = QWEN2
  kinds = kvjax.Paged(page=4)
  cache = kvjax.init_cache(config, 2, 8, kinds=kinds, codec=kvjax.Int8())
  tokens = np.asarray([[3, 5, 7, 9, 2], [4, 6, -1, -1, -1]])
  _, cache = kvjax.extend(config, params, cache, tokens)
  kvjax.save_cache(folder / 'cache', cache, config, params)


def read_cache(folder: pathlib.Path) -> Any:
  return repr(kvjax.load_cache(folder / 'cache', *QWEN2))


def write_tokenizer(folder: pathlib.Path) -> None:
  vocabulary = {'<s>': 0, '</s>': 1}
  vocabulary |= {chr(c): i for i, c in enumerate(range(32, 96), 2)}
  model = tokenizers.models.BPE(vocabulary, [], unk_token='</s>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.add_special_tokens(['<s>', '</s>'])
  tokenizer.decoder = tokenizers.decoders.Fuse()
  tokenizer.save(str(folder / 'tokenizer.json'))


def read_tokenizer(folder: pathlib.Path) -> Any:
  tokenizer = load_tokenizer(folder)
  return [tokenizer.encode(text) for text in TEXTS]


def official_tokenizer(folder: pathlib.Path) -> Any:
  path = str(folder / 'tokenizer.json')
  tokenizer = tokenizers.Tokenizer.from_file(path)
  return [tokenizer.encode(text).ids for text in TEXTS]


def write_chat(folder: pathlib.Path) -> None:
  values = {'bos_token': {'content': '<s>'}, 'eos_token': '</s>'}
  values['chat_template'] = '{{ bos_token }}{{ messages[0].content }}'
  (folder / chat.CONFIG).write_text(json.dumps(values))


def read_chat(folder: pathlib.Path) -> Any:
  template = chat.load_template(folder)
  return template and (template.source, dict(template.names))


def chat_of_json(folder: pathlib.Path) -> Any:
  values = json.loads((folder / chat.CONFIG).read_bytes().decode())
  source = values.get('chat_template')
  if isinstance(source, list):
    named = {x['name']: x['template'] for x in source}
    source = named.get('default')
  tokens = {name: values.get(name) for name in chat.SPECIAL}
  names = {
    name: token['content'] if isinstance(token, dict) else token
    for name, token in tokens.items()
    if token is not None
  }
  return None if source is None else (source, names)


MESSAGES = [{'role': 'user', 'content': 'Hi'}, {'role': 'x', 'content': ''}]


def write_template(folder: pathlib.Path) -> None:
  (folder / chat.FILE).write_text(
    '{% for message in messages %}\n<{{ message.role }}>\n'
    '{{ message.content or "é" }}\n{% endfor %}{% if add_generation_prompt %}'
    '<assistant>{% endif %}'
  )


def render(folder: pathlib.Path) -> str | None:
  """Returns what kvjax's own process renders; None where it refuses."""
  template = chat.load_template(folder)
  try:
    return template(MESSAGES) if template else ''
  except ValueError as refusal:
    if chat.FILE not in str(refusal):
      raise
    return None


def official_render(folder: pathlib.Path) -> str | None:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.loopcontrols'],
  )
  source = (folder / chat.FILE).read_bytes().decode()
  try:
    template = environment.from_string(source)
    return template.render(messages=MESSAGES, add_generation_prompt=True)
  except Exception:  # a template can raise anything
    return None


def write_large(folder: pathlib.Path) -> None:
  arrays = {x: np.ones((256, 1024), np.float32) for x in 'abc'}
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')


def write_stops(folder: pathlib.Path) -> None:
  values = {'eos_token_id': [1, 2], 'temperature': 0.7}
  (folder / 'generation_config.json').write_text(json.dumps(values))


def stops_of_json(folder: pathlib.Path) -> Any:
  values = json.loads((folder / 'generation_config.json').read_bytes().decode())
  ids = values.get('eos_token_id')
  return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)


def write_prompts(folder: pathlib.Path) -> None:
  lines = [json.dumps(x, ensure_ascii=False) for x in ('a\u2028b', 'c', 'é')]
  (folder / 'prompts.jsonl').write_text('\n'.join(lines) + '\n', 'utf-8')


def lines_of_json(name: str) -> Callable[[pathlib.Path], Any]:
  def read(folder):
    text = (folder / name).read_bytes().decode()
    lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
    return [json.loads(line) for line in lines if line.strip()]

  return read


def write_records(folder: pathlib.Path) -> None:
  for index in range(3):
    record = {'record': 'x', 'text': 'a\u2028b', 'number': index / 3}
    records.append(folder / 'records.jsonl', record)


GGUF_FILE = 'model.gguf'
GGUF_TOKENS = ['<unk>', '<s>', '</s>', '\u2581', 'a', 'b', '\u2581a', 'ab']
GGUF_TOKENIZER = {
  'general.architecture': 'llama',
  'tokenizer.ggml.model': 'llama',
  'tokenizer.ggml.tokens': GGUF_TOKENS,
  'tokenizer.ggml.token_type': np.asarray([2, 3, 3, 1, 1, 1, 1, 1], np.int32),
  'tokenizer.ggml.scores': -np.arange(8, dtype=np.float32),
  'tokenizer.ggml.bos_token_id': 1,
  'tokenizer.chat_template': '{{ bos_token }}{{ messages[0].content }}',
}


def write_gguf(folder: pathlib.Path) -> None:
  shutil.copy(GOLDEN.parent / 'gguf' / 'llama.gguf', folder / GGUF_FILE)


def read_gguf(folder: pathlib.Path) -> Any:
  """Returns metadata and tensors of a file, whatever model they describe."""
  path = folder / GGUF_FILE
  with errors_name(path):
    parsed = header.read_header(path)
    tensors = blocks.open_tensors(parsed)
  return (
    {key: _plain(value) for key, value in parsed.metadata.items()},
    _meaning({name: x.read() for name, x in tensors.items()}),
  )


def official_gguf(folder: pathlib.Path) -> Any:
  library = importlib.import_module('gguf')
  reader = library.GGUFReader(folder / GGUF_FILE)
  return (
    {
      key: _plain(field.contents())
      for key, field in reader.fields.items()
      if not key.startswith('GGUF.')
    },
    _meaning({x.name: x.data for x in reader.tensors}),
  )


def _plain(value: Any) -> Any:
  """Returns a value of metadata as text; numbers as float32 has them."""
  if isinstance(value, float):
    return repr(np.float32(value))
  return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def read_gguf_model(folder: pathlib.Path) -> None:
  _, sources = open_checkpoint(folder / GGUF_FILE)
  for source in sources:
    source.read()


def write_gguf_tokenizer(folder: pathlib.Path) -> None:
  gguf_writing.write(folder / GGUF_FILE, GGUF_TOKENIZER)


def read_gguf_tokenizer(folder: pathlib.Path) -> None:
  load_tokenizer(folder / GGUF_FILE).encode('ab c')
  stop_tokens(folder / GGUF_FILE)


BYTES = (mutations.change_bytes,)
GGUF = (
  mutations.change_bytes,
  mutations.change_gguf_bytes,
  mutations.change_gguf_number,
)
JSON = (mutations.change_bytes, mutations.change_json)
HEADER = (mutations.change_bytes, mutations.change_header)
INDEX = 'model.safetensors.index.json'
FORMATS = {
  'safetensors': Format(
    'model.safetensors',
    copy_model('qwen2'),
    HEADER,
    read_tensors,
    official_tensors,
  ),
  # Of 3 MB, so that four times the file is what bounds its memory.
  'large safetensors': Format(
    'model.safetensors', write_large, HEADER, read_tensors, official_tensors
  ),
  'config': Format(
    'config.json', copy_model('qwen2'), JSON, read_config, config_of_json
  ),
  # Which params a changed config means, no other parser here says.
  'config with weights': Format(
    'config.json',
    copy_model('qwen2'),
    JSON,
    lambda folder: read_model(folder) and None,
    lambda folder: None,
  ),
  'index': Format(
    INDEX,
    copy_model('llama_linear_shards'),
    JSON,
    read_model,
    same_model('llama_linear_shards'),
  ),
  'saved cache': Format('cache', write_cache, HEADER, read_cache, None),
  'tokenizer': Format(
    'tokenizer.json', write_tokenizer, JSON, read_tokenizer, official_tokenizer
  ),
  'chat': Format(chat.CONFIG, write_chat, JSON, read_chat, chat_of_json),
  'template': Format(chat.FILE, write_template, BYTES, render, official_render),
  'stops': Format(
    'generation_config.json', write_stops, JSON, stop_tokens, stops_of_json
  ),
  'prompts': Format(
    'prompts.jsonl',
    write_prompts,
    BYTES,
    lambda folder: prompts.read_prompts(folder / 'prompts.jsonl'),
    lines_of_json('prompts.jsonl'),
  ),
  'records': Format(
    'records.jsonl',
    write_records,
    BYTES,
    lambda folder: records.read([folder / 'records.jsonl']),
    lines_of_json('records.jsonl'),
  ),
  'gguf': Format(GGUF_FILE, write_gguf, GGUF, read_gguf, official_gguf),
  # Which params and ids a changed file means, no other parser here says.
  'gguf model': Format(
    GGUF_FILE, write_gguf, GGUF, read_gguf_model, lambda folder: None
  ),
  'gguf tokenizer': Format(
    GGUF_FILE,
    write_gguf_tokenizer,
    GGUF,
    read_gguf_tokenizer,
    lambda folder: None,
  ),
}
