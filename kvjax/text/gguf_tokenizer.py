"""The tokenizer that the metadata of a GGUF file describes.

A file has tokens, merges or scores, and a name for how text is cut into words;
what these mean is in llama.cpp (github.com/ggml-org/llama.cpp,
src/llama-vocab.cpp). Two kinds are known, by `tokenizer.ggml.model`: 'gpt2' is
BPE over bytes, and 'llama' is SentencePiece's BPE, whose merges follow from the
scores of the tokens. The library `tokenizers` runs both.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvjax.checkpoints.files import errors_name
from kvjax.checkpoints.gguf.header import read_header

Metadata = Mapping[str, Any]

KEY = 'tokenizer.ggml.'
# Types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPACE = '\u2581'  # of SentencePiece
LONGEST = 256  # characters of a token that is merged from two
# Text ends with these too: files name one end, and models of chats have more.
ENDS = frozenset(
  '<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> '
  '<|endoftext|> <|end_of_text|>'.split()
)
# Of Phi-3 these alone keep the white space that follows them.
KEEP_SPACE = frozenset(('<unk>', '<s>', '<|endoftext|>'))

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARK = r'[^\r\n\p{L}\p{N}]?'
_UPPER, _LOWER = (
  r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]',
  r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]',
)
_SPACES = r'|\s*[\r\n]+|\s+(?!\S)|\s+'
_LLAMA = (
  rf'{_SUFFIX}|{_MARK}\p{{L}}+|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}'
)
_CASED = (
  rf'{_MARK}{_UPPER}*{_LOWER}+SUFFIX|{_MARK}{_UPPER}+{_LOWER}*SUFFIX|DIGITS'
  rf'| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}'
)


@dataclasses.dataclass(frozen=True)
class Words:
  """How text is cut into words, before merges.

  Attributes:
    names: values of `tokenizer.ggml.pre`.
    pattern: of a word; None for that of GPT-2.
    digits: whether every digit is a word.
    whole: whether a word that is a token needs no merges.
    start: whether a text begins with the start token unless a key says no.
  """

  names: tuple[str, ...]
  pattern: str | None = None
  digits: bool = False
  whole: bool = False
  start: bool = False


_THREE, _ONE = r'\p{N}{1,3}', r'\p{N}'
WORDS = (
  Words(('gpt-2', 'phi-2')),
  Words(('smollm', 'starcoder', 'refact', 'command-r'), digits=True),
  Words(
    ('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'pixtral'),
    _LLAMA.replace('DIGITS', _THREE),
    whole=True,
    start=True,
  ),
  Words(('dbrx', 'smaug-bpe'), _LLAMA.replace('DIGITS', _THREE)),
  Words(
    ('qwen2', 'deepseek-r1-qwen', 'megrez', 'stablelm2'),
    _LLAMA.replace('DIGITS', _ONE),
  ),
  Words(
    ('gpt-4o', 'llama4', 'kanana2'),
    _CASED.replace('SUFFIX', _SUFFIX + '?').replace('DIGITS', _THREE),
  ),
  Words(
    ('tekken',),
    _CASED.replace('SUFFIX', '').replace('DIGITS', _ONE),
    whole=True,
    start=True,
  ),
)


def read_tokenizer(path: pathlib.Path) -> Any:
  """Returns the tokenizer of a file, a `tokenizers.Tokenizer`.

  Raises:
    ValueError: the file has no tokenizer, or one that is not supported.
    ImportError: the library is missing.
  """
  library: Any = importlib.import_module('tokenizers')
  with errors_name(path):
    metadata = read_header(path).metadata
    vocabulary = _read_vocabulary(metadata)
    builders = {'gpt2': _byte_level, 'llama': _sentencepiece}
    kind = metadata.get(f'{KEY}model')
    if kind not in builders:
      raise ValueError(
        f'tokenizer.ggml.model={kind!r} is not supported; supported: '
        f'{", ".join(builders)}.'
      )
    try:
      tokenizer, start = builders[kind](library, metadata, vocabulary)
      _add_special(library, metadata, vocabulary, tokenizer)
      _add_ends(library, metadata, vocabulary, tokenizer, start)
    except ValueError:
      raise
    except Exception as error:  # the library raises no narrower class
      raise ValueError(f'it describes no tokenizer: {error}.') from None
  return tokenizer


def special_token(metadata: Metadata, name: str) -> str | None:
  """Returns the text of a special token; None if the file names none.

  Args:
    metadata: of the file.
    name: 'bos', 'eos', 'unknown' or 'padding'.
  """
  index = _special_id(metadata, name)
  return None if index is None else metadata[f'{KEY}tokens'][index]


def stop_ids(metadata: Metadata) -> tuple[int, ...]:
  """Returns the ids after which a text ends."""
  named = [_special_id(metadata, name) for name in ('eos', 'eot', 'eom')]
  found = {index for index in named if index is not None}
  vocabulary = _read_vocabulary(metadata)
  ids = vocabulary.ids
  # gpt-oss ends each of its messages with <|end|>, and a text otherwise.
  ends = ENDS - (
    {'<|end|>'} if {'<|return|>', '<|call|>'} <= set(ids) else set()
  )
  found |= {
    ids[text]
    for text in ends & set(ids)
    if vocabulary.types[ids[text]] in (CONTROL, USER_DEFINED)
  }
  return tuple(sorted(found))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokens, each with a type and a score."""

  ids: Mapping[str, int]
  types: Sequence[int]
  scores: Sequence[float]


def _read_vocabulary(metadata: Metadata) -> Vocabulary:
  tokens = metadata.get(f'{KEY}tokens')
  if not isinstance(tokens, list) or not tokens:
    raise ValueError('it has no tokens: tokenizer.ggml.tokens lists none.')
  ids = {text: index for index, text in enumerate(tokens)}
  if len(ids) < len(tokens):
    raise ValueError('a token of tokenizer.ggml.tokens is there twice.')
  columns = []
  for key, default in (('token_type', NORMAL), ('scores', 0.0)):
    column = metadata.get(KEY + key, np.full(len(tokens), default))
    if not isinstance(column, np.ndarray) or len(column) != len(tokens):
      raise ValueError(
        f'tokenizer.ggml.{key} must be {len(tokens)} numbers, one for each '
        'token.'
      )
    columns.append(column.tolist())
  return Vocabulary(ids, *columns)


def _special_id(metadata: Metadata, name: str) -> int | None:
  default = {'bos': 1, 'eos': 2, 'unknown': 0}.get(name)
  if metadata.get(f'{KEY}model') != 'llama':
    default = None
  index = metadata.get(f'{KEY}{name}_token_id', default)
  tokens = metadata.get(f'{KEY}tokens')
  count = len(tokens) if isinstance(tokens, list) else 0
  if index is not None and (type(index) is not int or not 0 <= index < count):
    raise ValueError(
      f'tokenizer.ggml.{name}_token_id={index!r} is no id: there are {count} '
      'tokens.'
    )
  return index


def _byte_level(
  library: Any, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Any, bool]:
  """Returns BPE over bytes, and whether a text begins with the start token."""
  words = _choose_words(metadata.get(f'{KEY}pre'))
  merges = metadata.get(f'{KEY}merges')
  if not isinstance(merges, list):
    raise ValueError('tokenizer.ggml.merges must be a list of texts.')
  # A token may begin with a space, which parts no pair.
  cuts = [merge.find(' ', 1) for merge in merges]
  pairs = [(x[:cut], x[cut + 1 :]) for x, cut in zip(merges, cuts, strict=True)]
  tokenizer = library.Tokenizer(
    library.models.BPE(dict(vocabulary.ids), pairs, ignore_merges=words.whole)
  )
  steps = []
  if words.digits:
    steps.append(library.pre_tokenizers.Digits(individual_digits=True))
  if words.pattern is not None:
    pattern = library.Regex(words.pattern)
    steps.append(library.pre_tokenizers.Split(pattern, 'isolated'))
  plain = words.pattern is None
  steps.append(
    library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)
  )
  tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(steps)
  tokenizer.decoder = library.decoders.ByteLevel()
  return tokenizer, words.start


def _choose_words(name: Any) -> Words:
  for words in WORDS:
    if name in words.names:
      return words
  known = ', '.join(name for words in WORDS for name in words.names)
  raise ValueError(
    f'tokenizer.ggml.pre={name!r} is not supported; supported: {known}.'
  )


def _sentencepiece(
  library: Any, metadata: Metadata, vocabulary: Vocabulary
) -> tuple[Any, bool]:
  """Returns SentencePiece's BPE; a text begins with the start token."""
  # Gemma's scores do not follow the order of its merges, and its ids do.
  gemma = str(metadata.get('general.architecture')).startswith('gemma')
  tokenizer = library.Tokenizer(
    library.models.BPE(
      dict(vocabulary.ids),
      _merges(vocabulary, by_id=gemma),
      unk_token=special_token(metadata, 'unknown'),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  steps = [library.normalizers.Replace(' ', SPACE)]
  decoders = [
    library.decoders.Replace(SPACE, ' '),
    library.decoders.ByteFallback(),
    library.decoders.Fuse(),
  ]
  if metadata.get(f'{KEY}add_space_prefix', True):
    steps.insert(0, library.normalizers.Prepend(SPACE))
    decoders.append(library.decoders.Strip(' ', left=1, right=0))
  tokenizer.normalizer = library.normalizers.Sequence(steps)
  tokenizer.decoder = library.decoders.Sequence(decoders)
  return tokenizer, True


def _merges(vocabulary: Vocabulary, by_id: bool) -> list[tuple[str, str]]:
  """Returns all pairs of tokens that are a token, the best token first."""
  ids, types = vocabulary.ids, vocabulary.types
  ranked = []
  for token, index in ids.items():
    if types[index] != NORMAL:
      continue
    if len(token) > LONGEST:
      raise ValueError(f'a token has {len(token)} characters, over {LONGEST}.')
    rank = index if by_id else -vocabulary.scores[index]
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in ids and right in ids:
        ranked.append((rank, -cut, index, left, right))
  return [(left, right) for *_, left, right in sorted(ranked)]


def _add_special(
  library: Any, metadata: Metadata, vocabulary: Vocabulary, tokenizer: Any
) -> None:
  """Adds the tokens that are found in a text before it is cut."""
  phi = metadata.get('general.architecture') == 'phi3'
  strips = phi and metadata.get(f'{KEY}model') == 'llama'
  found: dict[bool, list[Any]] = {True: [], False: []}
  for text, index in vocabulary.ids.items():
    kind = vocabulary.types[index]
    if text and kind in (UNKNOWN, CONTROL, USER_DEFINED):
      special = kind != USER_DEFINED
      strip = strips and special and text not in KEEP_SPACE
      token = library.AddedToken(text, normalized=False, rstrip=strip)
      found[special].append(token)
  tokenizer.add_special_tokens(found[True])
  tokenizer.add_tokens(found[False])


def _add_ends(
  library: Any,
  metadata: Metadata,
  vocabulary: Vocabulary,
  tokenizer: Any,
  start: bool,
) -> None:
  """Adds the tokens that the model expects before and behind a text."""
  single: list[str] = ['$A']
  special = []
  for name, default in (('bos', start), ('eos', False)):
    index = _special_id(metadata, name)
    if index is None or not metadata.get(f'{KEY}add_{name}_token', default):
      continue
    single = [name, *single] if name == 'bos' else [*single, name]
    text = metadata[f'{KEY}tokens'][index]
    special.append({'id': name, 'ids': [index], 'tokens': [text]})
  if special:
    tokenizer.post_processor = library.processors.TemplateProcessing(
      single=single, special_tokens=special
    )
