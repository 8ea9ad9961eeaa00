"""Ids and text, chats, prompts: against the libraries' own words."""

import json
import pathlib

import numpy as np
import pytest

import kvjax
from experiments.generate.streaming import Streaming
from kvjax.text import chat, prompts, tokenizer
from kvjax.text.chat import load_template
from tests.checkpoints.writing import GOLDEN

CONFIG = kvjax.load_config(GOLDEN / 'llama')
CHAT = """{{ bos_token }}{% for m in messages %}
{% if m.role not in ['system', 'user'] %}
{{ raise_exception('no ' + m.role) }}
{% endif %}
[{{ m.role }}] {{ m.content | trim }}
{% if loop.last %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}[answer]{% endif %}"""
SAID = '<s>[system] BE BRIEF\n[user] HI\n[answer]'


def write_tokenizer(path: pathlib.Path) -> None:
  """Writes a tokenizer of 62 characters, with a mark at the beginning."""
  tokenizers = pytest.importorskip('tokenizers')
  words = {'<s>': 0, '</s>': 1}
  words |= {chr(c): i for i, c in enumerate(range(32, 96), 2)}
  found = tokenizers.Tokenizer(
    tokenizers.models.BPE(words, [], unk_token='</s>')
  )
  found.add_special_tokens(['<s>', '</s>'])
  found.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  found.decoder = tokenizers.decoders.Fuse()
  found.save(str(path / 'tokenizer.json'))


def write_chat(path: pathlib.Path, **more: object) -> None:
  values = {'chat_template': CHAT, 'bos_token': {'content': '<s>'}} | more
  (path / 'tokenizer_config.json').write_text(json.dumps(values))


def test_bytes_stream_across_tokens(tmp_path):
  words = tokenizer.load_tokenizer(tmp_path)
  ids = words.encode('a é €')
  assert ids == list('a é €'.encode())
  stream = words.stream()
  parts = [stream(i) for i in ids]
  assert ''.join(parts) == 'a é €' and '' in parts
  text = ''.join(map(words.stream(), [97, 256, 0xC3, 300, 98]))
  assert text == 'a\ufffd\ufffd\ufffdb'


def test_published_tokenizer(tmp_path):
  write_tokenizer(tmp_path)
  words = tokenizer.load_tokenizer(tmp_path)
  assert words.encode('AB') == [0, 35, 36]
  assert words.encode('AB', special=False) == [35, 36]
  assert ''.join(map(words.stream(), [0, 35, 36, 1])) == 'AB'
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='tokenizer.json is no tokenizer'):
    tokenizer.load_tokenizer(tmp_path)


def test_where_text_ends(tmp_path):
  assert tokenizer.stop_tokens(tmp_path) == ()
  (tmp_path / 'config.json').write_text('{"eos_token_id": 3}')
  assert tokenizer.stop_tokens(tmp_path) == (3,)
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [5, 7]}')
  assert tokenizer.stop_tokens(tmp_path) == (5, 7)
  with pytest.raises(ValueError, match='no decoder_start_token_id'):
    tokenizer.start_token(tmp_path)


def test_chat(tmp_path):
  pytest.importorskip('jinja2')
  write_tokenizer(tmp_path)
  write_chat(tmp_path)
  words = tokenizer.load_tokenizer(tmp_path)
  rows = prompts.encode_prompts(words, ['HI', ' HI\n'], system='BE BRIEF')
  assert rows == [words.encode(SAID, special=False)] * 2
  plain = prompts.encode_prompts(words, ['HI'], chat=False)
  assert plain == [words.encode('HI')]
  assert words.template is not None
  with pytest.raises(ValueError, match='refuses: no assistant'):
    words.template([{'role': 'assistant', 'content': ''}])


def test_a_chat_template_calls_nothing_outside_the_sandbox(monkeypatch):
  pytest.importorskip('jinja2')
  monkeypatch.setenv('SECRET', 'hunter2')
  reads = "'{0.__globals__[os].environ[SECRET]}'"
  for argument in (f'default={reads}.format', 'cls=lipsum'):
    with pytest.raises(ValueError, match='refuses.*unexpected keyword'):
      chat.Template('{{ lipsum|tojson(' + argument + ') }}')([])
  through_attr = '{% set f = ' + reads + "|attr('format') %}{{ f(lipsum) }}"
  with pytest.raises(ValueError, match='refuses'):
    chat.Template(through_attr)([])
  published = chat.Template(
    "{{ {'b': 'é', 'a': 1}|tojson(sort_keys=True, separators=(',', ':')) }}"
  )
  assert published([]) == '{"a":1,"b":"é"}'


def test_chat_templates_are_found_where_they_are_published(tmp_path):
  assert load_template(tmp_path) is None
  several = [
    {'name': 'tools', 'template': 'T'},
    {'name': 'default', 'template': 'D{{ 1 }}'},
  ]
  write_chat(tmp_path, chat_template=several)
  found = load_template(tmp_path)
  assert found is not None and found.source == 'D{{ 1 }}'
  (tmp_path / 'chat_template.jinja').write_text('{{ bos_token }}{% oops')
  pytest.importorskip('jinja2')
  found = load_template(tmp_path)
  assert found is not None and dict(found.names) == {'bos_token': '<s>'}
  with pytest.raises(ValueError, match='chat template refuses: .*oops'):
    found([])
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(ValueError, match='tokenizer_config.json is no JSON'):
    load_template(tmp_path)


def test_prompts_of_a_file(tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_text('ONE\n\nTWO 2\n')
  assert prompts.read_prompts(file) == ['ONE', 'TWO 2']
  lines = tmp_path / 'prompts.jsonl'
  lines.write_text('"A\\nB"\n')
  assert prompts.read_prompts(lines) == ['A\nB']
  lines.write_text('"A"\nB\n')
  with pytest.raises(ValueError, match='prompts.jsonl:2 is no JSON string'):
    prompts.read_prompts(lines)
  file.write_text('\n')
  with pytest.raises(ValueError, match='holds no prompt'):
    prompts.read_prompts(file)


def test_rows_become_a_batch():
  batch = prompts.make_batch(CONFIG, [[1, 2, 3], [96]])
  np.testing.assert_array_equal(batch.tokens, [[1, 2, 3], [96, 0, 0]])
  np.testing.assert_array_equal(batch.lengths, [3, 1])
  with pytest.raises(ValueError, match='token 97, but the model knows 97'):
    prompts.make_batch(CONFIG, [[97]])
  words = tokenizer.Bytes()
  with pytest.raises(ValueError, match="prompt '' has no token"):
    prompts.encode_prompts(words, [''])
  with pytest.raises(ValueError, match='has no chat template'):
    prompts.encode_prompts(words, ['A'], chat=True)


class File:
  """Remembers each write."""

  def __init__(self):
    self.parts = []

  def write(self, text):
    self.parts.append(text)

  def flush(self):
    pass


def test_one_row_streams_and_several_appear_as_they_end():
  file, words = File(), tokenizer.Bytes()
  one = Streaming([words.stream()], (33,), file)
  one.feed(np.array([[65]]))
  assert file.parts == ['A']
  one.feed(np.array([[66, 33, 67]]))
  one.close()
  assert (one.texts, one.stopped) == (['AB'], [True])
  file.parts.clear()
  two = Streaming([words.stream(), words.stream()], (33,), file)
  two.feed(np.array([[65], [66]]))
  assert not file.parts
  two.feed(np.array([[67, 68], [33, -1]]))
  assert file.parts == ['[2] B\n']
  two.close()
  assert file.parts == ['[2] B\n', '[1] ACD\n']
  assert two.tokens == [[65, 67, 68], [66, 33]]
