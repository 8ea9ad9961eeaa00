"""The tokenizer that the metadata of a GGUF file describes.

Two kinds are known, by `tokenizer.ggml.model`: 'gpt2' is BPE over bytes, whose
words are cut as `tokenizer.ggml.pre` says, and 'llama' is SentencePiece's BPE,
whose merges follow from the scores of the tokens. The library `tokenizers`,
which this module alone needs, runs both.
"""

import pathlib

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from kvjax.checkpoints.files import errors_name
from kvjax.text.gguf_vocabulary import (
  CONTROL,
  KEY,
  NORMAL,
  UNKNOWN,
  USER_DEFINED,
  Vocabulary,
  read_vocabulary,
)

SPACE = '\u2581'  # of SentencePiece
LONGEST = 256  # characters of a token that is merged from two
# Of Phi-3 these alone keep the white space that follows them.
KEEP_SPACE = frozenset(('<unk>', '<s>', '<|endoftext|>'))


# Parts of words.
_MARK = r'[^\r\n\p{L}\p{N}]?'
_UPPER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
_LOWER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHER = r' ?[^\s\p{L}\p{N}]+'
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'


def _split(pattern: str) -> pre_tokenizers.Split:
  return pre_tokenizers.Split(Regex(pattern), 'isolated')


GPT2 = _split(
  rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_OTHER}|\s+(?!\S)|\s+"
)
LLAMA3 = _split(
  rf'{_SUFFIX}|{_MARK}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}[\r\n]*|{_SPACES}'
)
QWEN2 = _split(rf'{_SUFFIX}|{_MARK}\p{{L}}+|\p{{N}}|{_OTHER}[\r\n]*|{_SPACES}')
GPT4O = _split(
  rf'{_MARK}{_UPPER}*{_LOWER}+{_SUFFIX}?|{_MARK}{_UPPER}+{_LOWER}*{_SUFFIX}?'
  rf'|\p{{N}}{{1,3}}|{_OTHER}[\r\n/]*|{_SPACES}'
)
TEKKEN = _split(
  rf'{_MARK}{_UPPER}*{_LOWER}+|{_MARK}{_UPPER}+{_LOWER}*|\p{{N}}'
  rf'|{_OTHER}[\r\n/]*|{_SPACES}'
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
# How text is cut into words, one step after another, by names of
# `tokenizer.ggml.pre`.
WORDS = {
  'gpt-2 phi-2': (GPT2,),
  'smollm starcoder refact command-r': (DIGITS, GPT2),
  'llama-bpe llama3 llama-v3 falcon3 pixtral dbrx smaug-bpe': (LLAMA3,),
  'qwen2 deepseek-r1-qwen megrez stablelm2': (QWEN2,),
  'gpt-4o llama4 kanana2': (GPT4O,),
  'tekken': (TEKKEN,),
}
STEPS = {
  name: steps for names, steps in WORDS.items() for name in names.split()
}
# Of these a word that is a token needs no merges, and a text begins with the
# start token unless a key says no.
WHOLE = frozenset('llama-bpe llama3 llama-v3 falcon3 pixtral tekken'.split())


def read_tokenizer(path: pathlib.Path) -> Tokenizer:
  """Returns the tokenizer of a file.

  Raises:
    ValueError: the file has no tokenizer, or one that is not supported.
  """
  with errors_name(path):
    vocabulary = read_vocabulary(path)
    try:
      return _build(vocabulary)
    except ValueError:
      raise
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f'it describes no tokenizer: {error}.') from None


def _build(vocabulary: Vocabulary) -> Tokenizer:
  kind, start = vocabulary.get('model'), True
  if kind == 'gpt2':
    tokenizer = _byte_level(vocabulary)
    start = vocabulary.get('pre') in WHOLE
  elif kind == 'llama':
    tokenizer = _sentencepiece(vocabulary)
  else:
    raise ValueError(
      f'{KEY}model={kind!r} is not supported; supported: gpt2, llama.'
    )
  tokenizer.add_tokens(_special_tokens(vocabulary))
  tokenizer.post_processor = _ends(vocabulary, start)
  return tokenizer


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
  """Returns BPE over bytes."""
  name, merges = vocabulary.get('pre'), vocabulary.get('merges')
  if name not in STEPS:
    raise ValueError(
      f'{KEY}pre={name!r} is not supported; supported: {", ".join(STEPS)}.'
    )
  if not isinstance(merges, list):
    raise ValueError(f'{KEY}merges must be a list of texts.')
  # A token may begin with a space, which parts no pair.
  cuts = [merge.find(' ', 1) for merge in merges]
  pairs = [(x[:cut], x[cut + 1 :]) for x, cut in zip(merges, cuts, strict=True)]
  tokenizer = Tokenizer(
    models.BPE(dict(vocabulary.ids), pairs, ignore_merges=name in WHOLE)
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *STEPS[name],
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
  """Returns SentencePiece's BPE."""
  tokenizer = Tokenizer(
    models.BPE(
      dict(vocabulary.ids),
      _merges(vocabulary),
      unk_token=vocabulary.special_token('unknown'),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  before: list[normalizers.Normalizer] = [normalizers.Replace(' ', SPACE)]
  after: list[decoders.Decoder] = [
    decoders.Replace(SPACE, ' '),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if vocabulary.get('add_space_prefix', True):
    before.insert(0, normalizers.Prepend(SPACE))
    after.append(decoders.Strip(' ', left=1, right=0))
  tokenizer.normalizer = normalizers.Sequence(before)
  tokenizer.decoder = decoders.Sequence(after)
  return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
  """Returns all pairs of tokens that are a token, the best token first."""
  # Gemma's scores do not follow the order of its merges, and its ids do.
  by_id = vocabulary.architecture.startswith('gemma')
  ids = vocabulary.ids
  ranked = []
  for token, index in ids.items():
    if vocabulary.types[index] != NORMAL:
      continue
    if len(token) > LONGEST:
      raise ValueError(f'a token has {len(token)} characters, over {LONGEST}.')
    rank = index if by_id else -vocabulary.scores[index]
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in ids and right in ids:
        ranked.append((rank, -cut, index, left, right))
  return [(left, right) for *_, left, right in sorted(ranked)]


def _special_tokens(vocabulary: Vocabulary) -> list[AddedToken]:
  """Returns the tokens that are found in a text before it is cut."""
  is_phi3 = vocabulary.architecture == 'phi3'
  strips = is_phi3 and vocabulary.get('model') == 'llama'
  tokens = []
  for text, index in vocabulary.ids.items():
    kind = vocabulary.types[index]
    if text and kind in (UNKNOWN, CONTROL, USER_DEFINED):
      special = kind != USER_DEFINED
      strip = strips and special and text not in KEEP_SPACE
      tokens.append(
        AddedToken(text, normalized=False, rstrip=strip, special=special)
      )
  return tokens


def _ends(vocabulary: Vocabulary, start: bool) -> processors.TemplateProcessing:
  """Returns what adds the tokens that the model expects around a text.

  Args:
    vocabulary: of the file.
    start: whether a text begins with the start token where no key says it.
  """
  template, special = ['$A'], []
  for name, default in (('bos', start), ('eos', False)):
    index = vocabulary.special_id(name)
    if index is None or not vocabulary.get(f'add_{name}_token', default):
      continue
    template.insert(0 if name == 'bos' else len(template), name)
    texts = [vocabulary.special_token(name)]
    special.append({'id': name, 'ids': [index], 'tokens': texts})
  return processors.TemplateProcessing(single=template, special_tokens=special)
