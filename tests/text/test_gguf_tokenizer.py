"""Tokenizers of GGUF files: words, ids, ends and chats, by value."""

import numpy as np
import pytest

from kvjax import text
from kvjax.text.gguf_tokenizer import WORDS, read_tokenizer
from tests.checkpoints.gguf_writing import write

tokenizers = pytest.importorskip('tokenizers')

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
LINE = "I'M 12345 déjà\r\n\n  VU1.don't²"
# What each name makes of that line, by hand; a space is written as '_' here.
CUT = {
  'gpt-2': "I|'|M|_12345|_déjà|\r\n\n_|_VU|1|.|don|'t|²",
  'smollm': "I|'|M|_|1|2|3|4|5|_déjà|\r\n\n_|_VU|1|.|don|'t|²",
  'llama-bpe': "I|'M|_|123|45|_déjà|\r\n\n|_|_VU|1|.don|'t|²",
  'dbrx': "I|'M|_|123|45|_déjà|\r\n\n|_|_VU|1|.don|'t|²",
  'qwen2': "I|'M|_|1|2|3|4|5|_déjà|\r\n\n|_|_VU|1|.don|'t|²",
  'gpt-4o': "I'M|_|123|45|_déjà|\r\n\n|_|_VU|1|.don't|²",
  'tekken': "I|'M|_|1|2|3|4|5|_déjà|\r\n\n|_|_VU|1|.don|'t|²",
}
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, 'ab', 'abc', 'bc', '<|im_start|>', '<|im_end|>', '<tool>']
TYPES = [NORMAL] * 259 + [CONTROL, CONTROL, USER]
BYTES = {
  'general.architecture': 'qwen2',
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'qwen2',
  'tokenizer.ggml.tokens': TOKENS,
  'tokenizer.ggml.token_type': np.array(TYPES, np.int32),
  'tokenizer.ggml.merges': ['b c', 'a b'],
  'tokenizer.ggml.bos_token_id': 259,
  'tokenizer.ggml.eos_token_id': 260,
  'tokenizer.chat_template': '{{ bos_token }}{{ messages[0].content }}',
}
PIECES = {
  '<unk>': (UNKNOWN, 0),
  '<s>': (CONTROL, 0),
  '</s>': (CONTROL, 0),
  '<0xC3>': (BYTE, 0),
  '<0xA9>': (BYTE, 0),
  '▁': (NORMAL, -4),
  'a': (NORMAL, -5),
  'b': (NORMAL, -6),
  '▁a': (NORMAL, -2),
  'ab': (NORMAL, -1),
  '▁ab': (NORMAL, -3),
  '<|end|>': (CONTROL, 0),
}
PIECE_IDS = {text: index for index, text in enumerate(PIECES)}
SENTENCES = {
  'general.architecture': 'llama',
  'tokenizer.ggml.model': 'llama',
  'tokenizer.ggml.pre': 'default',
  'tokenizer.ggml.tokens': list(PIECES),
  'tokenizer.ggml.token_type': np.array(
    [kind for kind, _ in PIECES.values()], np.int32
  ),
  'tokenizer.ggml.scores': np.array(
    [score for _, score in PIECES.values()], np.float32
  ),
}


def load(folder, values, **changes):
  changed = values | {
    f'tokenizer.ggml.{key}': value for key, value in changes.items()
  }
  changed = {key: x for key, x in changed.items() if x is not None}
  path = write(folder / 'model.gguf', changed)
  return text.load_tokenizer(path)


def spelled(ids):
  return [list(PIECES)[index] for index in ids]


def test_every_kind_of_words_is_cut_by_hand():
  assert {words.names[0] for words in WORDS} == set(CUT)


@pytest.mark.parametrize('name', CUT)
def test_words(tmp_path, name):
  path = write(tmp_path / 'x.gguf', BYTES | {'tokenizer.ggml.pre': name})
  words = read_tokenizer(path).pre_tokenizer.pre_tokenize_str(LINE)
  found = [LINE[start:end] for _, (start, end) in words]
  assert '|'.join(found).replace(' ', '_') == CUT[name]


def test_merges_and_whole_words(tmp_path):
  ids = {token: index for index, token in enumerate(TOKENS)}
  tokenizer = load(tmp_path, BYTES)
  assert tokenizer.encode('abc') == [ids['a'], ids['bc']]
  llama = load(tmp_path, BYTES, pre='llama-bpe', add_bos_token=False)
  assert llama.encode('abc abcd') == [
    *(ids['abc'], ids['Ġ'], ids['a'], ids['bc'], ids['d'])
  ]
  line = '<tool>é<|im_end|>ab'
  found = tokenizer.encode(line)
  assert found[0] == ids['<tool>'] and found[3:] == [
    ids['<|im_end|>'],
    ids['ab'],
  ]
  assert tokenizer.decode(found) == '<tool>éab'


@pytest.mark.parametrize(
  ('changes', 'start', 'end'),
  [
    ({}, [], []),
    ({'add_bos_token': True}, [259], []),
    ({'pre': 'llama-bpe'}, [259], []),
    ({'pre': 'llama-bpe', 'bos_token_id': None}, [], []),
    ({'pre': 'llama-bpe', 'add_bos_token': False}, [], []),
    ({'add_bos_token': True, 'add_eos_token': True}, [259], [260]),
  ],
)
def test_tokens_around_a_text(tmp_path, changes, start, end):
  tokenizer = load(tmp_path, BYTES, **changes)
  middle = [TOKENS.index('ab')]
  assert tokenizer.encode('ab') == start + middle + end
  assert tokenizer.encode('ab', special=False) == middle


def test_sentencepiece(tmp_path):
  tokenizer = load(tmp_path, SENTENCES)
  # 'ab' has the best score, then no pair with it is a token but '▁ab'.
  assert spelled(tokenizer.encode('ab a')) == ['<s>', '▁ab', '▁a']
  # A space at the beginning is kept, and one more is put before it.
  assert spelled(tokenizer.encode(' a')) == ['<s>', '▁', '▁a']
  found = tokenizer.encode('é</s>b', special=False)
  assert spelled(found) == ['▁', '<0xC3>', '<0xA9>', '</s>', '▁', 'b']
  assert spelled(tokenizer.encode('c', special=False)) == ['▁', '<unk>']
  assert tokenizer.decode(tokenizer.encode('ab é')) == 'ab é'
  bare = load(tmp_path, SENTENCES, add_space_prefix=False, add_bos_token=False)
  assert spelled(bare.encode('ab a')) == ['ab', '▁a']


def test_gemma_merges_in_the_order_of_its_ids(tmp_path):
  scores = [score for _, score in PIECES.values()]
  changes = {
    'tokens': [*PIECES, 'ba'],
    'token_type': None,
    'scores': np.array([*scores, -0.5], np.float32),
    'add_bos_token': False,
  }
  for architecture, want in (('gemma2', 'b ab'), ('llama', 'ba b')):
    values = SENTENCES | {'general.architecture': architecture}
    ids = load(tmp_path, values, **changes).encode('bab')
    assert [changes['tokens'][index] for index in ids] == ['▁', *want.split()]


def test_phi3_drops_the_line_end_behind_a_special_token(tmp_path):
  for architecture, want in (('phi3', 2), ('llama', 4)):
    values = SENTENCES | {'general.architecture': architecture}
    ids = load(tmp_path, values, add_bos_token=False).encode('<|end|>\na')
    assert len(ids) == want, spelled(ids)


@pytest.mark.parametrize(
  ('values', 'changes', 'want'),
  [
    (BYTES, {}, (260,)),
    (BYTES, {'eot_token_id': 259}, (259, 260)),
    (BYTES, {'eos_token_id': None}, (260,)),  # named <|im_end|>
    (SENTENCES, {}, (2, 11)),
    (
      SENTENCES,
      {'tokens': [*list(PIECES)[:9], '<|call|>', '<|return|>', '<|end|>']},
      (2,),
    ),
  ],
)
def test_where_text_ends(tmp_path, values, changes, want):
  load(tmp_path, values, **changes)
  assert text.stop_tokens(tmp_path / 'model.gguf') == want


def test_chat(tmp_path):
  pytest.importorskip('jinja2')
  tokenizer = load(tmp_path, BYTES, add_bos_token=True)
  template = tokenizer.template
  assert template is not None and dict(template.names) == {
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
  }
  ids = text.encode_prompts(tokenizer, ['ab'])
  assert ids == [[259, TOKENS.index('ab')]]
  values = BYTES | {'tokenizer.chat_template': None}
  assert load(tmp_path, values).template is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': 'bert'}, "model='bert' is not supported; supported: gpt2, lla"),
    ({'model': None}, 'model=None is not supported'),
    ({'pre': 'viking'}, "pre='viking' is not supported; supported: gpt-2"),
    ({'tokens': None}, 'it has no tokens'),
    ({'tokens': ['a', 'a']}, 'a token of tokenizer.ggml.tokens is there twice'),
    ({'token_type': np.array([1], np.int32)}, 'token_type must be 262 numbers'),
    ({'scores': 7}, 'scores must be 262 numbers'),
    ({'merges': None}, 'merges must be a list of texts'),
    ({'merges': ['q zz']}, 'it describes no tokenizer'),
    ({'bos_token_id': 262}, 'bos_token_id=262 is no id: there are 262 tokens'),
    ({'eos_token_id': 'x'}, "eos_token_id='x' is no id"),
  ],
)
def test_what_is_broken_is_refused(tmp_path, changes, message):
  with pytest.raises(ValueError, match=f'model.gguf: .*{message}'):
    load(tmp_path, BYTES, **changes)
    text.stop_tokens(tmp_path / 'model.gguf')


def test_a_token_that_would_take_too_long_is_refused(tmp_path):
  pieces = [*PIECES, 'a' * 257]
  changes = {'tokens': pieces, 'token_type': None}
  changes['scores'] = np.zeros(len(pieces), np.float32)
  with pytest.raises(ValueError, match='a token has 257 characters, over 256'):
    load(tmp_path, SENTENCES, **changes)


def test_a_template_of_another_type_is_refused(tmp_path):
  with pytest.raises(ValueError, match='chat_template must be a text'):
    load(tmp_path, BYTES | {'tokenizer.chat_template': ['x']})
