"""`experiments.generate` as its flags run it, against the uncached model."""

import functools
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.generate import __main__ as generate
from experiments.generate.streaming import Streaming
from tests.checkpoints.writing import GOLDEN, altered
from tests.experiments.flags import given_flags

TEXTS = ['ONE', 'TWO AND MORE']


@pytest.fixture
def two_prompts(tmp_path):
  """Returns the path of a file that has `TEXTS`, a line each."""
  file = tmp_path / 'prompts.txt'
  file.write_text('\n'.join(TEXTS))
  return str(file)


def run(tmp_path, name, **given):
  """Returns records of a run, by their kind."""
  out = tmp_path / 'out.jsonl'
  out.unlink(missing_ok=True)
  own = {'checkpoint': str(GOLDEN / name), 'out': str(out), 'block': 4}
  with given_flags(generate.FLAGS, **own | given):
    try:
      generate.main([])
    except SystemExit as end:
      assert end.code == 130
  found = {}
  for line in out.read_text().splitlines():
    record = json.loads(line)
    found.setdefault(record['record'], []).append(record)
  return found


@functools.cache
def uncached(name, prompt, count=12):
  """Returns greedy tokens after a prompt, by forward alone."""
  config, params = kvjax.load_checkpoint(GOLDEN / name)
  ids = np.zeros((1, len(prompt) + count), np.int32)
  ids[0, : len(prompt)] = list(prompt.encode())
  for at in range(len(prompt), ids.shape[1]):
    logits = kvjax.forward(config, params, jnp.asarray(ids))
    ids[0, at] = np.asarray(logits)[0, at - 1].argmax()
  return ids[0, len(prompt) :].tolist()


def test_a_prompt_and_one_that_goes_on_from_it(tmp_path, capsys):
  file = str(tmp_path / 'prompt.safetensors')
  found = run(
    tmp_path,
    'llama',
    prompt='A KV ',
    tokens=6,
    capacity=16,
    save_prompt_cache=file,
  )
  tokens = uncached('llama', 'A KV ')[:6]
  (record,) = found['text']
  assert record['tokens'] == tokens
  said = capsys.readouterr()
  assert said.out == record['text'] + '\n'
  for line in ('first token', 'tokens/s', 'bytes', 'GB/s'):
    assert line in said.err
  found = run(tmp_path, 'llama', prompt='CACHE', tokens=4, prompt_cache=file)
  assert found['text'][0]['tokens'] == uncached('llama', 'A KV CACHE', 7)[:4]


def test_a_repetition_penalty_counts_prompt_and_answer(tmp_path, two_prompts):
  """Padding, which is token 0, does not count."""
  found = run(
    tmp_path, 'llama', prompts=two_prompts, tokens=6, repetition_penalty=0.2
  )
  config, params = kvjax.load_checkpoint(GOLDEN / 'llama')
  for text, record in zip(TEXTS, found['text'], strict=True):
    ids = list(text.encode())
    for _ in range(6):
      logits = kvjax.forward(config, params, jnp.asarray([ids]))
      x = np.array(logits[0, -1])
      x[ids] = np.where(x[ids] < 0, 0.2 * x[ids], x[ids] / 0.2)
      ids.append(int(x.argmax()))
    assert record['tokens'] == ids[-6:]


def test_a_ragged_file_of_prompts_through_int8(tmp_path, two_prompts):
  """The bytes at the end are those of the plan; MLA keeps latents alone."""
  found = run(
    tmp_path,
    'deepseek_v3',
    prompts=two_prompts,
    tokens=6,
    cache='int8',
    temperature=0.7,
    top_k=9,
    seed=3,
    weights='int8',
  )
  assert [r['prompt'] for r in found['text']] == TEXTS
  assert [len(r['tokens']) for r in found['text']] == [6, 6]
  speed = found['speed'][0]
  config = kvjax.load_config(GOLDEN / 'deepseek_v3')
  plan = kvjax.memory.plan(
    config, batch_size=2, capacity=17, codec=kvjax.Int8()
  )
  assert speed['cache_bytes'] == plan.cache_bytes
  # A latent of 10 codes and a scale, a rotary key of 4 floats; two layers.
  assert plan.bytes_per_token == 2 * (10 + 4 + 4 * 4)
  assert (speed['rows'], speed['steps']) == (2, 5)
  coded = kvjax.memory.plan(
    config, batch_size=1, capacity=1, param_dtype='int8'
  )
  read = speed['step_bytes'] - coded.active_params_bytes
  assert 0 < read < plan.cache_bytes


def test_an_encoder_decoder_answers_its_source(tmp_path):
  found = run(tmp_path, 't5', prompt='A SOURCE', tokens=3)
  config, params = kvjax.load_checkpoint(GOLDEN / 't5')
  source = jnp.asarray([list(b'A SOURCE')])
  encoded = kvjax.encode(config, params, source)
  ids = np.zeros((1, 4), np.int32)
  for at in range(1, 4):
    logits = kvjax.forward(config, params, jnp.asarray(ids), encoded=encoded)
    ids[0, at] = np.asarray(logits)[0, at - 1].argmax()
  assert found['text'][0]['tokens'] == ids[0, 1:].tolist()
  plan = kvjax.memory.plan(
    config, batch_size=1, capacity=3, source_length=source.shape[1]
  )
  assert found['speed'][0]['cache_bytes'] == plan.cache_bytes


def test_interrupting_keeps_what_was_generated(tmp_path, monkeypatch):
  feed, before = Streaming.feed, signal.getsignal(signal.SIGINT)

  def interrupted(self, new):
    feed(self, new)
    if new.shape[1] > 1:
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(Streaming, 'feed', interrupted)
  found = run(tmp_path, 'llama', prompt='A KV ', tokens=12)
  (record,) = found['text']
  assert record['interrupted'] and not record['stopped']
  assert record['tokens'] == uncached('llama', 'A KV ')[:5]
  assert signal.getsignal(signal.SIGINT) is before


KEY = 'model.layers.1.self_attn.k_proj.weight'


@pytest.mark.parametrize(
  'config, tensors, message',
  [
    ({'model_type': 'mamba'}, {}, "Unknown model_type 'mamba'"),
    ({'rope_scaling': {'type': 'mrope'}}, {}, "Unknown rope type 'mrope'"),
    ({'hidden_act': 'mish'}, {}, "Unknown activation hidden_act='mish'"),
    ({'quantization_config': {'quant_method': 'awq'}}, {}, "method 'awq'"),
    ({'num_key_value_heads': 2}, {}, 'k_proj.weight has shape [18, 24]'),
    ({'num_hidden_layers': 3}, {}, 'is missing from the checkpoint'),
    ({}, {KEY: np.zeros((24, 18), np.float32)}, f'{KEY} has shape [24, 18]'),
    ({}, {'extra': np.zeros(3, np.float32)}, 'Unexpected tensor extra [3]'),
    ({}, None, 'model.safetensors is truncated'),
  ],
)
def test_a_broken_checkpoint_is_one_line(
  tmp_path, config, tensors, message, capsys
):
  more = lambda found: found | (tensors or {})
  path = altered(tmp_path, 'llama', lambda c: c | config, more)
  if tensors is None:
    file = path / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
  given = {'checkpoint': str(path), 'prompt': 'ABC', 'tokens': 2}
  with given_flags(generate.FLAGS, **given), pytest.raises(SystemExit) as end:
    generate.main([])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1


def test_text_ends_where_the_checkpoint_says(tmp_path):
  end = uncached('llama', 'A KV ')[2]
  path = altered(tmp_path, 'llama', lambda c: c | {'eos_token_id': [end]})
  given = {'checkpoint': str(path), 'prompt': 'A KV ', 'tokens': 12}
  found = run(tmp_path, 'llama', **given)['text'][0]
  first = found['tokens'].index(end)
  assert found['stopped'] and first == len(found['tokens']) - 1


@pytest.mark.parametrize(
  'given, message',
  [
    ({'checkpoint': ''}, 'No model is named: give --checkpoint=DIR'),
    (
      {'checkpoint': '/nowhere'},
      ": There is no model '/nowhere'. A name is an existing path",
    ),
    ({'prompt': ''}, 'Give one of --prompt=TEXT and --prompts=FILE'),
    ({'prompts': 'x'}, 'Give one of --prompt=TEXT and --prompts=FILE'),
    ({'prompt': '', 'prompts': 'x'}, 'x cannot be read: No such file'),
    ({'prompt': 'lower'}, 'token 119, but the model knows 97'),
    ({'tokens': 0}, 'tokens=0 must be a positive integer'),
    ({'block': 0}, 'block=0 must be a positive integer'),
    ({'top_p': 2.0}, 'top_p=2.0 must be in (0, 1]'),
    ({'repetition_penalty': 0.0}, 'penalty=0.0 must exceed 0'),
    ({'kernel': 'best'}, "kernel='best' must be one of ffi, mosaic_gpu"),
    ({'cache': 'rnig'}, "'rnig' is no name of one kind and one codec"),
    ({'capacity': 0}, 'capacity=0 must be a positive integer'),
    ({'capacity': 9}, 'capacity=9 is less than the 10 tokens'),
    ({'chat': True}, 'has no chat template'),
    ({'prompt_cache': 'x', 'cache': 'int8'}, 'its own kind and capacity'),
    ({'prompt_cache': '/absent'}, 'There is no file /absent'),
    ({'checkpoint': str(GOLDEN / 'whisper')}, 'reads frames of 5 features'),
    ({'dtype': 'flaot32'}, 'flaot32'),
  ],
)
def test_refusals_are_one_line(given, message, capsys):
  given = {
    'checkpoint': str(GOLDEN / 'llama'),
    'prompt': 'ABC',
    'tokens': 8,
  } | given
  with given_flags(generate.FLAGS, **given), pytest.raises(SystemExit) as end:
    generate.main([])
  assert end.value.code == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1
