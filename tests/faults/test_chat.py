"""Chat templates, tokenizers and prompts that others wrote badly.

A template may raise anything, and may ask for any time and memory: each case
ends in one ValueError that names the template.
"""

import json
import os

import pytest

from kvjax import text
from kvjax.text import chat

# Where a template raises.
RAISES = {
  'a stored format': (
    "{{ ['%s%s']|map('format', 1)|join }}",
    'TypeError not enough arguments for format string',
  ),
  'tojson(cls=)': ('{{ 1|tojson(cls=cycler) }}', 'unexpected keyword'),
  'tojson(default=)': ('{{ 1|tojson(default=range) }}', 'unexpected keyword'),
  'include': ("{% include '/etc/passwd' %}", 'TypeError no loader'),
  'import': ("{% import '/etc/passwd' as x %}", 'TypeError no loader'),
  'division by zero': ('{{ 1 / 0 }}', 'ZeroDivisionError division by zero'),
  'a sum of types': ('{{ [1] + 1 }}', 'TypeError can only concatenate list'),
  'a date of a number': ('{{ strftime_now(5) }}', r'TypeError strftime\(\)'),
  'a long message': (
    "{{ raise_exception('a' * 10**7) }}",
    f'{"a" * 500}.$',
  ),
  'an element of a number': ('{{ 5.a.b }}', "no attribute 'a'"),
}
MEMORY = 'it needs more than 1073741824 bytes'
TIME = 'it computes for more than 0.5 s'
DOUBLED = (
  "{%% set n = namespace(s='ab') %%}{%% for i in range(60) %%}"
  '{%% set n.s = %s %%}{%% endfor %%}'
)
# Where a template asks for too much.
BOUNDS = {
  'a range': ('{{ range(10**6)|list }}', 'OverflowError Range too big'),
  'loops in loops': (
    '{% for i in range(99999) %}{% for j in range(99999) %}'
    '{% endfor %}{% endfor %}',
    TIME,
  ),
  'a macro that calls itself': (
    '{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}',
    'RecursionError maximum recursion depth',
  ),
  'nested parentheses': (
    '{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}',
    'RecursionError maximum recursion depth',
  ),
  'a power': ('{{ 10**(10**10) }}', TIME),
  'a text times a number': ("{{ 'a' * 10**11 }}", MEMORY),
  'a list times a number': ('{{ [0] * 10**11 }}', MEMORY),
  'a width of %': ("{{ '%099999999999d' % 1 }}", MEMORY),
  'a shorter width of %': ("{{ '%0999999999d' % 1 }}", f'{TIME}|{MEMORY}'),
  'a width of the filter format': (
    "{{ '%099999999999d'|format(1) }}",
    MEMORY,
  ),
  'a width of str.format': ("{{ '{:>99999999999}'.format(1) }}", MEMORY),
  'str.ljust': ("{{ 'a'.ljust(10**11) }}", MEMORY),
  'str.zfill': ("{{ 'a'.zfill(10**11) }}", MEMORY),
  'str.replace': (
    "{{ ('a' * 10**7).replace('a', 'b' * 10**7) }}",
    MEMORY,
  ),
  'replace': ("{{ ('a' * 10**7)|replace('a', 'b' * 10**7) }}", MEMORY),
  'center': ("{{ 'a'|center(10**11) }}", MEMORY),
  'indent': ("{{ 'a\nb'|indent(10**11) }}", MEMORY),
  'join': ("{{ (['a' * 10**7] * 10**6)|join }}", f'{TIME}|{MEMORY}'),
  'batch': ("{{ [1]|batch(10**11, 'x')|list }}", f'{TIME}|{MEMORY}'),
  'xmlattr': ("{{ {'a': '<' * 10**9}|xmlattr }}", f'{TIME}|{MEMORY}'),
  'tojson': ('{{ [1]|tojson(indent=10**11) }}', MEMORY),
  'lipsum': ('{{ lipsum(n=10**9) }}', TIME),
  'a text doubled by ~': (DOUBLED % 'n.s ~ n.s', f'{TIME}|{MEMORY}'),
  'a text doubled by +': (DOUBLED % 'n.s + n.s', f'{TIME}|{MEMORY}'),
  'a block of text': (
    "{% set x %}{% for i in range(99999) %}{{ 'ab' * 10**5 }}{% endfor %}"
    '{% endset %}',
    f'{TIME}|{MEMORY}',
  ),
  'a long answer': ("{{ 'a' * 2 * 10**7 }}", 'more than 16777216 characters'),
}


@pytest.mark.parametrize(
  'source, message', [*RAISES.values(), *BOUNDS.values()], ids=RAISES | BOUNDS
)
def test_a_template_ends_in_one_line(source, message, monkeypatch):
  pytest.importorskip('jinja2')
  monkeypatch.setattr(chat, 'SECONDS', 0.5)
  template = text.Template(source, origin='x/chat_template.jinja')
  with pytest.raises(
    ValueError, match=f'x/chat_template.jinja chat template .*({message})'
  ):
    template([{'role': 'user', 'content': 'HI'}])


def test_each_chat_has_its_own_time(monkeypatch):
  """Twenty chats of a tenth of the time each, in one process."""
  pytest.importorskip('jinja2')
  monkeypatch.setattr(chat, 'SECONDS', 1.0)
  slow = text.Template(
    '{% for i in range(150) %}{% for j in range(10000) %}{% endfor %}'
    '{% endfor %}{{ messages[0].content }}'
  )
  chats = [[{'role': 'user', 'content': f'{i}'}] for i in range(20)]
  assert slow.render(chats) == [f'{i}' for i in range(20)]


def test_a_template_has_no_variables_of_the_environment(monkeypatch):
  """A gap in the sandbox leads to a process that knows no secret."""
  monkeypatch.setenv('SECRET', 'hunter2')
  monkeypatch.setattr(chat.rendering, '__file__', '/dev/stdin')
  program = b'import json, os; print(json.dumps(list(os.environ)))'
  names = chat._run(program, 60.0)
  assert set(names) <= {*chat.VARIABLES, 'LC_CTYPE'}


def test_messages_that_are_no_json():
  pytest.importorskip('jinja2')
  with pytest.raises(ValueError, match='must be objects of JSON: Object of'):
    text.Template('')([{'role': 'user', 'content': min}])  # pyright: ignore


TEMPLATE = 'chat_template must be Jinja, or a list'
CONFIGS = {
  'template of a number': ({'chat_template': 5}, TEMPLATE),
  'template of an object': ({'chat_template': {'a': 1}}, TEMPLATE),
  'templates of numbers': ({'chat_template': [5]}, TEMPLATE),
  'a name without a template': (
    {'chat_template': [{'name': 'default'}]},
    TEMPLATE,
  ),
  'a template of a number in a list': (
    {'chat_template': [{'name': 'default', 'template': 5}]},
    TEMPLATE,
  ),
  'a token without content': (
    {'chat_template': 'x', 'bos_token': {'a': 1}},
    "bos_token={'a': 1} must be a text",
  ),
  'a token of a number': (
    {'chat_template': 'x', 'bos_token': 5},
    'bos_token=5 must be a text',
  ),
  'a token of false': (
    {'chat_template': 'x', 'pad_token': False},
    'pad_token=False must be a text',
  ),
}


@pytest.mark.parametrize('values, message', CONFIGS.values(), ids=CONFIGS)
def test_a_tokenizer_config_of_other_types(tmp_path, values, message):
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(values))
  with pytest.raises(ValueError, match=f'tokenizer_config.json: {message}'):
    text.load_template(tmp_path)


def test_a_template_that_is_no_text(tmp_path):
  (tmp_path / 'chat_template.jinja').write_bytes(b'\xff')
  with pytest.raises(ValueError, match='chat_template.jinja is no UTF-8'):
    text.load_template(tmp_path)


IDS = {
  'a text': ('abc', "'abc'"),
  'negative': (-1, '-1'),
  'a fraction': (1.5, '1.5'),
  'a text in a list': ([1, 'a'], "'a'"),
  'a list in a list': ([[1]], r'\[1\]'),
  'an object': ({'a': 1}, "{'a': 1}"),
  'true': (True, 'True'),
  'beyond int32': (99999999999999, '99999999999999'),
  'beyond the vocabulary': (97, '97'),
}


@pytest.mark.parametrize('name', ['config.json', 'generation_config.json'])
@pytest.mark.parametrize('ids, value', IDS.values(), ids=IDS)
def test_an_end_that_is_no_id(tmp_path, name, ids, value):
  (tmp_path / 'config.json').write_text('{"vocab_size": 97}')
  (tmp_path / name).write_text(
    json.dumps({'vocab_size': 97, 'eos_token_id': ids})
  )
  with pytest.raises(
    ValueError,
    match=f'/{name}: eos_token_id has {value}; an id is .* from 0 to 96',
  ):
    text.stop_tokens(tmp_path)


def test_an_end_without_a_vocabulary(tmp_path):
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({'eos_token_id': 2**31}))
  with pytest.raises(ValueError, match='from 0 to 2147483647'):
    text.stop_tokens(tmp_path)
  file.write_text(json.dumps({'eos_token_id': [2**31 - 1, 0]}))
  assert text.stop_tokens(tmp_path) == (2**31 - 1, 0)
  file.write_text(json.dumps({'decoder_start_token_id': True}))
  with pytest.raises(ValueError, match='decoder_start_token_id has True'):
    text.start_token(tmp_path)


READERS = {
  'tokenizer.json': text.load_tokenizer,
  'tokenizer_config.json': text.load_template,
  'chat_template.jinja': text.load_template,
  'generation_config.json': text.stop_tokens,
  'config.json': text.stop_tokens,
}


@pytest.mark.parametrize('name', READERS)
def test_a_pipe_or_a_link_to_nothing(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(ValueError, match=f'{name} is there and no regular file'):
    READERS[name](tmp_path)
  (tmp_path / name).unlink()
  (tmp_path / name).symlink_to(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=f'{name} is there and no regular file'):
    READERS[name](tmp_path)


@pytest.mark.parametrize('mark', '\u0085\u2028\u2029\v\f\x1c')
def test_a_prompt_ends_at_a_newline_alone(tmp_path, mark):
  prompt = f'A{mark}B'
  (tmp_path / 'x.txt').write_text(f'{prompt}\nC\n', encoding='utf-8')
  assert text.read_prompts(tmp_path / 'x.txt') == [prompt, 'C']
  line = json.dumps(prompt, ensure_ascii=False)
  (tmp_path / 'x.jsonl').write_text(f'{line}\n"C"\n', encoding='utf-8')
  assert text.read_prompts(tmp_path / 'x.jsonl') == [prompt, 'C']


def test_prompts_that_are_no_text(tmp_path):
  (tmp_path / 'x.jsonl').write_bytes(b'"\xff"\n')
  with pytest.raises(ValueError, match='x.jsonl is no UTF-8'):
    text.read_prompts(tmp_path / 'x.jsonl')
  (tmp_path / 'x.jsonl').write_text('[' * 10**5)
  with pytest.raises(ValueError, match='x.jsonl:1 is no JSON string'):
    text.read_prompts(tmp_path / 'x.jsonl')


@pytest.mark.parametrize('name', [chat.FILE, chat.CONFIG])
def test_an_empty_template_is_a_template(tmp_path, name):
  """A checkpoint that publishes one writes nothing for any chat."""
  content = '' if name == chat.FILE else json.dumps({'chat_template': ''})
  (tmp_path / name).write_text(content)
  template = chat.load_template(tmp_path)
  assert template is not None
  assert template([{'role': 'user', 'content': 'a'}]) == ''
