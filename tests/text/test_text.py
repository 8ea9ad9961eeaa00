"""Ids and text, chats, prompts: against the libraries' own words."""

import json
import pathlib

import numpy as np
import pytest

import kvjax
from experiments.generate.streaming import Streaming
from kvjax import text
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
  vocabulary = {'<s>': 0, '</s>': 1}
  vocabulary |= {chr(c): i for i, c in enumerate(range(32, 96), 2)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocabulary, [], unk_token='</s>')
  )
  tokenizer.add_special_tokens(['<s>', '</s>'])
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  tokenizer.decoder = tokenizers.decoders.Fuse()
  tokenizer.save(str(path / 'tokenizer.json'))


def write_chat(path: pathlib.Path, **changes: object) -> None:
  values = {'chat_template': CHAT, 'bos_token': {'content': '<s>'}} | changes
  (path / 'tokenizer_config.json').write_text(json.dumps(values))


def test_bytes_stream_across_tokens(tmp_path):
  tokenizer = text.load_tokenizer(tmp_path)
  ids = tokenizer.encode('a é €')
  assert ids == list('a é €'.encode())
  stream = tokenizer.stream()
  parts = [stream(i) for i in ids]
  assert ''.join(parts) == 'a é €' and '' in parts
  replaced = tokenizer.decode([97, 256, 0xC3, 300, 98, -1, -1])
  assert replaced == 'a\ufffd\ufffd\ufffdb'


def test_published_tokenizer(tmp_path):
  write_tokenizer(tmp_path)
  tokenizer = text.load_tokenizer(tmp_path)
  assert tokenizer.encode('AB') == [0, 35, 36]
  assert tokenizer.encode('AB', special=False) == [35, 36]
  assert tokenizer.decode([0, 35, 36, 1, -1]) == 'AB'
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='tokenizer.json is no tokenizer'):
    text.load_tokenizer(tmp_path)


def test_where_text_ends(tmp_path):
  assert text.stop_tokens(tmp_path) == ()
  (tmp_path / 'config.json').write_text('{"eos_token_id": 3}')
  assert text.stop_tokens(tmp_path) == (3,)
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [5, 7]}')
  assert text.stop_tokens(tmp_path) == (5, 7)
  with pytest.raises(ValueError, match='no decoder_start_token_id'):
    text.start_token(tmp_path)


def test_chat(tmp_path):
  pytest.importorskip('jinja2')
  write_tokenizer(tmp_path)
  write_chat(tmp_path)
  tokenizer = text.load_tokenizer(tmp_path)
  rows = text.encode_prompts(tokenizer, ['HI', ' HI\n'], system='BE BRIEF')
  assert rows == [tokenizer.encode(SAID, special=False)] * 2
  plain = text.encode_prompts(tokenizer, ['HI'], chat=False)
  assert plain == [tokenizer.encode('HI')]
  assert tokenizer.template is not None
  with pytest.raises(ValueError, match='refuses: no assistant'):
    tokenizer.template([{'role': 'assistant', 'content': ''}])


def test_a_chat_template_calls_nothing_outside_the_sandbox(monkeypatch):
  pytest.importorskip('jinja2')
  monkeypatch.setenv('SECRET', 'hunter2')
  reads = "'{0.__globals__[os].environ[SECRET]}'"
  for argument in (f'default={reads}.format', 'cls=lipsum'):
    with pytest.raises(ValueError, match='refuses.*unexpected keyword'):
      text.Template('{{ lipsum|tojson(' + argument + ') }}')([])
  through_attr = '{% set f = ' + reads + "|attr('format') %}{{ f(lipsum) }}"
  with pytest.raises(ValueError, match='refuses'):
    text.Template(through_attr)([])
  published = text.Template(
    "{{ {'b': 'é', 'a': 1}|tojson(sort_keys=True, separators=(',', ':')) }}"
  )
  assert published([]) == '{"a":1,"b":"é"}'


def test_chat_templates_are_found_where_they_are_published(tmp_path):
  assert text.load_template(tmp_path) is None
  several = [
    {'name': 'tools', 'template': 'T'},
    {'name': 'default', 'template': 'D{{ 1 }}'},
  ]
  write_chat(tmp_path, chat_template=several)
  template = text.load_template(tmp_path)
  assert template is not None and template.source == 'D{{ 1 }}'
  (tmp_path / 'chat_template.jinja').write_text('{{ bos_token }}{% oops')
  pytest.importorskip('jinja2')
  template = text.load_template(tmp_path)
  assert template is not None and dict(template.names) == {'bos_token': '<s>'}
  with pytest.raises(ValueError, match='chat template refuses: .*oops'):
    template([])
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(ValueError, match='tokenizer_config.json is no JSON'):
    text.load_template(tmp_path)


def test_prompts_of_a_file(tmp_path):
  file = tmp_path / 'prompts.txt'
  file.write_text('ONE\n\nTWO 2\n')
  assert text.read_prompts(file) == ['ONE', 'TWO 2']
  lines = tmp_path / 'prompts.jsonl'
  lines.write_text('"A\\nB"\n')
  assert text.read_prompts(lines) == ['A\nB']
  lines.write_text('"A"\nB\n')
  with pytest.raises(ValueError, match='prompts.jsonl:2 is no JSON string'):
    text.read_prompts(lines)
  file.write_text('\n')
  with pytest.raises(ValueError, match='holds no prompt'):
    text.read_prompts(file)


def test_rows_become_a_batch():
  batch = text.make_batch(CONFIG, [[1, 2, 3], [96]])
  np.testing.assert_array_equal(batch.tokens, [[1, 2, 3], [96, 0, 0]])
  np.testing.assert_array_equal(batch.lengths, [3, 1])
  with pytest.raises(ValueError, match='token 97, but the model knows 97'):
    text.make_batch(CONFIG, [[97]])
  tokenizer = text.ByteTokenizer()
  with pytest.raises(ValueError, match="prompt '' has no token"):
    text.encode_prompts(tokenizer, [''])
  with pytest.raises(ValueError, match='has no chat template'):
    text.encode_prompts(tokenizer, ['A'], chat=True)


class File:
  """Remembers each write."""

  def __init__(self):
    self.parts = []

  def write(self, text):
    self.parts.append(text)

  def flush(self):
    pass


def test_one_row_streams_and_several_appear_as_they_end():
  file, tokenizer = File(), text.ByteTokenizer()
  single = Streaming([tokenizer.stream()], (33,), file)
  single.feed(np.array([[65]]))
  assert file.parts == ['A']
  single.feed(np.array([[66, 33, 67]]))
  single.close()
  assert (single.texts, single.stopped) == (['AB'], [True])
  file.parts.clear()
  several = Streaming([tokenizer.stream(), tokenizer.stream()], (33,), file)
  several.feed(np.array([[65], [66]]))
  assert not file.parts
  several.feed(np.array([[67, 68], [33, -1]]))
  assert file.parts == ['[2] B\n']
  several.close()
  assert file.parts == ['[2] B\n', '[1] ACD\n']
  assert several.tokens == [[65, 67, 68], [66, 33]]
