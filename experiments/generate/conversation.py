"""A conversation over one cache: each turn feeds only what is new.

The chat template writes the whole conversation at every turn. The cache goes
back to the tokens that it has seen of this text, and the rest is fed. A kind
that cannot go back that far (a bounded cache, a full ring) keeps all that it
has seen. It is fed what the template writes behind the last answer.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import kvjax
from experiments import launch
from experiments.generate import answer
from experiments.generate.streaming import Streaming
from kvjax.text.prompts import make_batch
from kvjax.text.tokenizer import Tokenizer

CAPACITY = 4096  # in tokens, of a model that knows as many positions
# Stands for the last answer where the template writes it. Unicode leaves this
# character to private use, so that no text has it.
MARK = '\ue000'


@dataclasses.dataclass(frozen=True)
class Talk:
  """What was said, and what of it is in the cache.

  Attributes:
    messages: so far.
    seen: tokens of the conversation that the cache has seen.
    pending: the token that was sampled last, which the cache has not seen.
    past: tokens of the cache before the conversation.
  """

  messages: tuple[dict[str, str], ...] = ()
  seen: tuple[int, ...] = ()
  pending: tuple[int, ...] = ()
  past: int = 0

  def tell(self, role: str, content: str) -> 'Talk':
    """Returns this with one more message."""
    message = {'role': role, 'content': content}
    return dataclasses.replace(self, messages=(*self.messages, message))


def hold(
  request: answer.Request,
  model: answer.Model,
  words: Tokenizer,
  cache: kvjax.Cache,
  system: str = '',
) -> Iterator[dict[str, Any]]:
  """Yields the record of each turn, until no line comes.

  A turn without room, or one that the template refuses, ends the program.

  Args:
    request: how to answer; its prompts are not read.
    model: its config and parameters.
    words: a tokenizer with a chat template.
    cache: one row; donated.
    system: instruction that the conversation begins with; '' for none.
  """
  talk = Talk(past=int(cache.length[0]))
  talk = talk.tell('system', system) if system else talk
  for line in _lines():
    talk = talk.tell('user', line)
    earliest, limit = int(kvjax.earliest(cache)[0]), cache.layout.limit
    with launch.door((ValueError,)):
      kept, part = next_part(words, talk, earliest)
      turn = _turn(request, model[0], limit, talk, kept, part)
    if kept < len(talk.seen):
      cache = kvjax.rewind(cache, talk.past + kept, donate=True)
    text = Streaming([words.stream()], request.stop_tokens)
    cache, _ = answer.write(turn, model, cache, text)
    tokens = text.tokens[0]
    talk = dataclasses.replace(
      talk.tell('assistant', text.texts[0]),
      seen=(*talk.seen[:kept], *part, *tokens[:-1]),
      pending=() if text.stopped[0] else tuple(tokens[-1:]),
    )
    count, size = kept_in(cache)
    figures = {'fed': len(part), 'tokens_kept': count, 'bytes_kept': size}
    print(
      '{tokens_kept:,} tokens, {bytes_kept:,} bytes kept; '
      '{fed:,} tokens fed'.format_map(figures),
      file=sys.stderr,
    )
    yield text.records([line])[0] | figures


def next_part(
  words: Tokenizer, talk: Talk, earliest: int
) -> tuple[int, list[int]]:
  """Returns how many seen tokens stay, and the tokens that are fed then.

  Args:
    words: a tokenizer with a chat template.
    talk: its last message waits for an answer.
    earliest: the smallest length that the cache can be rewound to.
  """
  assert words.template is not None
  marked = [dict(message) for message in talk.messages]
  if len(marked) > 1:
    marked[-2]['content'] = MARK
  whole, marked_whole = words.template.render([talk.messages, marked])
  ids = words.encode(whole, special=False)
  kept = common_length(talk.seen, ids)
  if kept == len(talk.seen) or talk.past + kept >= earliest:
    return kept, ids[kept:]
  # All of it where the template leaves the last answer out.
  behind = marked_whole.rpartition(MARK)[2]
  ids = words.encode(behind, special=False)
  return len(talk.seen), [*talk.pending, *ids]


def common_length(seen: Sequence[int], ids: Sequence[int]) -> int:
  """Returns how many tokens both begin with, less than all of `ids`."""
  pairs = zip(seen, ids[:-1], strict=False)
  unequal = (i for i, (old, new) in enumerate(pairs) if old != new)
  return next(unequal, min(len(seen), len(ids) - 1))


def kept_in(cache: kvjax.Cache) -> tuple[int, int]:
  """Returns tokens and bytes that a cache of one row keeps.

  The tokens are those of the layer that keeps most.
  """
  layers = [x for x in kvjax.inspect(cache).rows if x.slots]
  counts = [int(x.filled.rpartition('..')[2]) for x in layers]
  sizes = [x.bytes * n // x.slots for x, n in zip(layers, counts, strict=True)]
  return max(counts), sum(sizes)


def check(config: kvjax.ModelConfig, save: str) -> None:
  """Raises ValueError for a model or a flag that has no conversation."""
  if config.encoder is not None:
    raise ValueError('The model reads a source: give it as --prompt=TEXT.')
  if save:
    raise ValueError(
      f'save_prompt_cache={save} needs a prompt: give --prompt=TEXT as well.'
    )


def default_capacity(config: kvjax.ModelConfig) -> int:
  """Returns tokens of a conversation where no capacity is named."""
  return min(CAPACITY, config.positions or CAPACITY)


def _turn(
  request: answer.Request,
  config: kvjax.ModelConfig,
  limit: int | None,
  talk: Talk,
  kept: int,
  part: list[int],
) -> answer.Request:
  """Returns the request of a turn after the `kept` first tokens of a talk."""
  length = talk.past + kept
  room = request.tokens
  if limit is not None:  # the last token is returned and not fed
    room = min(room, limit - length - len(part) + 1)
  if room < 1:
    raise ValueError(
      f'capacity={limit} is full: this turn has {len(part)} tokens after '
      f'{length}. Begin anew, with a larger --capacity or a ring.'
    )
  prompts = make_batch(config, [part])
  sampling = dict(request.sampling)
  if 'adjust' in sampling:
    # Padding to a power of two compiles few programs.
    ids = [*talk.seen[:kept], *part]
    prompt = np.full((1, 1 << len(ids).bit_length()), -1, np.int32)
    prompt[0, : len(ids)] = ids
    sampling['adjust'] = sampling['adjust'].replace(prompt=prompt)
  return dataclasses.replace(
    request, prompts=prompts, tokens=room, sampling=sampling
  )


def _lines() -> Iterator[str]:
  """Yields lines of standard input until an empty one, or its end."""
  while True:
    try:
      line = input('> ' if sys.stdin.isatty() else '')
    except EOFError:
      return
    if not line.strip():
      return
    yield line
