"""A conversation over one cache, against one prompt of the whole text."""

import dataclasses
import functools
import io
import json
import signal

import numpy as np
import pytest

import kvjax
from experiments.generate import __main__ as generate
from experiments.generate import conversation
from experiments.generate.streaming import Streaming
from kvjax.text import ByteTokenizer, Template
from tests.checkpoints.writing import GOLDEN
from tests.experiments.flags import given_flags

pytest.importorskip('jinja2')
PLAIN = (
  '{% for m in messages %}[{{ m.role[0]|upper }}]{{ m.content }}{% endfor %}[A]'
)
# Nothing is left of an answer but the last, as of thoughts in some models.
FORGETS = PLAIN.replace(
  '{{ m.content }}',
  "{{ m.content if m.role == 'user' or loop.revindex < 3 else '' }}",
)
LINES = ['WHO?', 'AND YOU', 'ALL OF US']


@dataclasses.dataclass(frozen=True)
class Chatting(ByteTokenizer):
  template: Template

  def stream(self):
    # A random model has no whole UTF-8 to say: a character an id.
    return chr

  def encode(self, text, *, special=True):
    assert not special
    return [min(ord(x), 96) for x in text]


def run(monkeypatch, tmp_path, source=PLAIN, lines=LINES, **given):
  """Returns the records of turns, the tokens fed in each, and the cache."""
  words = Chatting(Template(source))
  monkeypatch.setattr(generate.tokenizer, 'load_tokenizer', lambda _: words)
  monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(lines)))
  caches, fed = [], []
  write = conversation.answer.write

  def spy(request, model, cache, text):
    fed.append(request.prompts.tokens[0].tolist())
    result = write(request, model, cache, text)
    caches.append(result[0])
    return result

  monkeypatch.setattr(conversation.answer, 'write', spy)
  out = tmp_path / 'out.jsonl'
  own = {'checkpoint': str(GOLDEN / 'llama'), 'out': str(out), 'chat': True}
  own |= {'tokens': 6, 'block': 3, 'stop': False}
  with given_flags(generate.FLAGS, **own | given):
    generate.main([])
  turns = [json.loads(line) for line in out.read_text().splitlines()[1:]]
  return turns, fed, caches


def rendered(source, turns, last):
  """Returns the ids of the whole conversation that waits for an answer."""
  messages = []
  for turn in turns:
    messages.append({'role': 'user', 'content': turn['prompt']})
    messages.append({'role': 'assistant', 'content': turn['text']})
  words = Chatting(Template(source))
  text = words.template([*messages, {'role': 'user', 'content': last}])
  return tuple(words.encode(text, special=False))


@functools.cache
def greedy(ids, count):
  config, params = kvjax.load_checkpoint(GOLDEN / 'llama')
  cache = kvjax.init_cache(config, 1, len(ids) + count)
  logits, cache = kvjax.prefill(config, params, cache, np.asarray([ids]))
  return kvjax.generate(config, params, cache, logits, count)[0][0].tolist()


@pytest.mark.parametrize('source', [PLAIN, FORGETS])
@pytest.mark.parametrize('cache', ['default', 'paged:page=4'])
def test_answers_are_those_to_the_whole_text(
  source, cache, monkeypatch, tmp_path, capsys
):
  turns, fed, caches = run(monkeypatch, tmp_path, source, cache=cache)
  assert [turn['prompt'] for turn in turns] == LINES
  for index, turn in enumerate(turns):
    ids = rendered(source, turns[:index], LINES[index])
    assert turn['tokens'] == greedy(ids, 6)
    assert fed[index] == list(ids[-len(fed[index]) :])
    assert turn['tokens_kept'] == len(ids) + 5
  # Behind the last token of an answer there is the new turn alone.
  assert len(fed[1]) == 1 + len('[U]AND YOU[A]')
  forgotten = len('[U]AND YOU[A]') + 6 if source is FORGETS else 1
  assert len(fed[2]) == forgotten + len('[U]ALL OF US[A]')
  config = kvjax.load_config(GOLDEN / 'llama')
  a_token = kvjax.memory.plan(config, batch_size=1, capacity=8).bytes_per_token
  kept = turns[-1]['tokens_kept']
  assert turns[-1]['bytes_kept'] == a_token * kept
  said = capsys.readouterr()
  assert said.out.count('\n') >= 3
  assert f'{kept:,} tokens, {a_token * kept:,} bytes kept' in said.err


@pytest.mark.parametrize(
  'cache', ['sinks:sinks=2,window=9', 'bounded:budget=12', 'ring:window=9']
)
def test_a_kind_that_cannot_go_back_goes_on(cache, monkeypatch, tmp_path):
  """It is fed the last token of the answer, and what the template writes."""
  turns, fed, caches = run(monkeypatch, tmp_path, FORGETS, cache=cache)
  last = turns[1]['tokens'][-1]
  words = Chatting(Template(FORGETS))
  assert fed[2] == [last, *words.encode('[U]ALL OF US[A]', special=False)]
  seen = sum(map(len, fed)) + 3 * 5
  assert caches[-1].length.tolist() == [seen]
  assert turns[-1]['tokens_kept'] <= 12


def test_a_repetition_penalty_counts_the_whole_conversation(
  monkeypatch, tmp_path
):
  turns, _, _ = run(monkeypatch, tmp_path, repetition_penalty=0.2)
  config, params = kvjax.load_checkpoint(GOLDEN / 'llama')
  for index, turn in enumerate(turns):
    ids = list(rendered(PLAIN, turns[:index], LINES[index]))
    for _ in range(6):
      logits = kvjax.forward(config, params, np.asarray([ids]))
      x = np.array(logits[0, -1])
      x[ids] = np.where(x[ids] < 0, 0.2 * x[ids], x[ids] / 0.2)
      ids.append(int(x.argmax()))
    assert turn['tokens'] == ids[-6:]


def test_ctrl_c_ends_an_answer_and_keeps_it(monkeypatch, tmp_path):
  feed, presses = Streaming.feed, iter([True])

  def interrupted(self, new):
    feed(self, new)
    if next(presses, False):
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(Streaming, 'feed', interrupted)
  turns, fed, caches = run(monkeypatch, tmp_path, tokens=9)
  assert turns[0]['interrupted'] and len(turns[0]['tokens']) < 9
  ids = rendered(PLAIN, turns[:1], LINES[1])
  assert turns[1]['tokens'] == greedy(ids, 9)
  assert caches[-1].length.tolist() == [turns[-1]['tokens_kept']]


def test_an_empty_line_ends_it_and_a_prompt_cache_begins_it(
  monkeypatch, tmp_path
):
  file = str(tmp_path / 'prompt.safetensors')
  config, params = kvjax.load_checkpoint(GOLDEN / 'llama')
  _, cache = kvjax.extend(
    config, params, kvjax.init_cache(config, 1, 64), np.asarray([[7, 8, 9]])
  )
  kvjax.save_cache(file, cache, config, params)
  lines = [LINES[0], '', LINES[1]]
  turns, _, caches = run(monkeypatch, tmp_path, lines=lines, prompt_cache=file)
  (turn,) = turns
  assert turn['tokens'] == greedy((7, 8, 9, *rendered(PLAIN, [], 'WHO?')), 6)
  assert caches[0].length.tolist() == [3 + len('[U]WHO?[A]') + 5]


def test_a_full_cache_is_one_line(monkeypatch, tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    run(monkeypatch, tmp_path, capacity=30)
  assert end.value.code == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert 'capacity=30 is full: this turn has 16 tokens after' in error
  # The second turn was answered as far as there was room.
  lines = (tmp_path / 'out.jsonl').read_text().splitlines()
  assert [len(json.loads(x)['tokens']) for x in lines[1:]] == [6, 2]


def test_an_answer_takes_no_more_than_there_is_room(monkeypatch, tmp_path):
  (turn,), _, _ = run(
    monkeypatch, tmp_path, lines=LINES[:1], capacity=16, tokens=200
  )
  assert turn['tokens'] == greedy(rendered(PLAIN, [], LINES[0]), 7)


@pytest.mark.parametrize(
  'given, message',
  [
    ({'capacity': 5}, 'capacity=5 is less than the 6 tokens of prompt and'),
    ({'repetition_penalty': 0.0}, 'penalty=0.0 must exceed 0'),
  ],
)
def test_refusals_before_the_first_turn(
  given, message, monkeypatch, tmp_path, capsys
):
  with pytest.raises(SystemExit) as end:
    run(monkeypatch, tmp_path, **given)
  assert end.value.code == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'out.jsonl').exists()


@pytest.mark.parametrize(
  'given, message',
  [
    ({}, 'has no chat template'),
    ({'checkpoint': str(GOLDEN / 't5')}, 'reads a source: give it as --prompt'),
    ({'save_prompt_cache': 'x'}, 'save_prompt_cache=x needs a prompt'),
    ({'chat': None}, 'or --chat alone for a conversation'),
  ],
)
def test_refusals_are_one_line(given, message, capsys):
  own = {'checkpoint': str(GOLDEN / 'llama'), 'chat': True}
  with given_flags(generate.FLAGS, **own | given):
    with pytest.raises(SystemExit) as end:
      generate.main([])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1


@pytest.mark.parametrize(
  'seen, ids, common',
  [
    ((), (1, 2), 0),
    ((1, 2), (1, 2, 3), 2),
    ((1, 2), (1, 3, 2), 1),
    ((1, 2, 3), (1, 2, 3), 2),
    ((1, 2, 3), (1, 2), 1),
  ],
)
def test_common_length(seen, ids, common):
  assert conversation.common_length(seen, ids) == common
