"""Text in, text out: tokenizers, chat templates and ragged batches of prompts.

tokenizer = load_tokenizer(path)
rows = encode_prompts(tokenizer, ['Once upon a time', 'Hello'])
batch = make_batch(config, rows)
"""

from kvjax.text import smollm2
from kvjax.text.chat import Message, Template, load_template
from kvjax.text.chunked import prefill_in_chunks
from kvjax.text.prompts import (
  Batch,
  check_reads_text,
  encode_prompts,
  make_batch,
  read_prompts,
)
from kvjax.text.tokenizer import (
  ByteTokenizer,
  Decode,
  PublishedTokenizer,
  Tokenizer,
  load_tokenizer,
  start_token,
  stop_tokens,
)

__all__ = (
  'Batch',
  'ByteTokenizer',
  'Decode',
  'Message',
  'PublishedTokenizer',
  'Template',
  'Tokenizer',
  'check_reads_text',
  'encode_prompts',
  'load_template',
  'load_tokenizer',
  'make_batch',
  'prefill_in_chunks',
  'read_prompts',
  'smollm2',
  'start_token',
  'stop_tokens',
)
