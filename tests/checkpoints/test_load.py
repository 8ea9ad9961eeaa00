"""Loading itself: dtypes, shards, spellings, placement, host memory."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import load_checkpoint, load_config, parse_config
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.table import evaluate, group_by_place, parse_table
from tests.checkpoints import on_mesh
from tests.checkpoints.writing import GOLDEN, altered, read
from tests.sharding.processes import run_processes

ROOT = pathlib.Path(__file__).parents[2]


def test_params_are_what_init_params_makes():
  for path in sorted(GOLDEN.iterdir()):
    config, params = load_checkpoint(path)
    want = jax.eval_shape(
      lambda c=config: kvjax.init_params(c, jax.random.key(0))
    )
    assert jax.tree.structure(params) == jax.tree.structure(want)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert kinds(params) == kinds(want)


def test_a_published_weight_lands_where_the_table_says():
  published = read(GOLDEN / 'llama' / 'model.safetensors')
  _, params = load_checkpoint(GOLDEN / 'llama')
  found = params['layers'][1]['attention']['value']
  want = published['model.layers.1.self_attn.v_proj.weight']
  np.testing.assert_array_equal(found, want)


def test_latent_projection_is_split_by_head():
  published = read(GOLDEN / 'deepseek_v3' / 'model.safetensors')
  _, params = load_checkpoint(GOLDEN / 'deepseek_v3')
  fused = published['model.layers.0.self_attn.kv_b_proj.weight']
  attention = params['layers'][0]['attention']
  for head in range(3):  # rows of a head: 6 of keys, then 5 of values
    rows = fused[head * 11 : head * 11 + 11]
    np.testing.assert_array_equal(attention['up_key'][head], rows[:6])
    np.testing.assert_array_equal(attention['up_value'][head], rows[6:])


@pytest.mark.parametrize('stored', [jnp.bfloat16, np.float16])
def test_dtype_is_that_of_the_file(tmp_path, stored):
  narrow = lambda x: {k: v.astype(stored) for k, v in x.items()}
  path = altered(tmp_path, 'deepseek_v3', tensors=narrow)
  config, params = load_checkpoint(path)
  assert config.dtype == jnp.dtype(stored).name
  layer = params['layers'][1]
  assert layer['attention']['query'].dtype == stored
  assert layer['mlp']['correction'].dtype == jnp.float32
  config, params = load_checkpoint(path, dtype=jnp.float32)
  assert config.dtype == 'float32'
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}


def test_conversion_rounds_to_nearest():
  _, wide = load_checkpoint(GOLDEN / 'llama')
  _, narrow = load_checkpoint(GOLDEN / 'llama', dtype='bfloat16')
  want = wide['embedding'].astype(jnp.bfloat16)
  assert (narrow['embedding'] == want).all()


@pytest.mark.parametrize('name', ['deepseek_v3', 'qwen3'])
def test_weights_are_quantized_as_they_are_read(name):
  config, params = load_checkpoint(GOLDEN / name, weights='int8')
  same, want = load_checkpoint(GOLDEN / name)
  assert config == same
  want = kvjax.quantize(want)
  assert jax.tree.structure(params) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, params, want)
  with pytest.raises(ValueError, match="weights='int3' is unknown.*'int8'"):
    load_checkpoint(GOLDEN / name, weights='int3')


@pytest.mark.parametrize(('count', 'devices'), [(1, 8), (2, 2)])
def test_every_process_reads_its_part(tmp_path, count, devices):
  params = kvjax.init_params(on_mesh.CONFIG, jax.random.key(0))
  kvjax.save_checkpoint(tmp_path / 'x', on_mesh.CONFIG, params)
  args = 'tests.checkpoints.on_mesh', count, devices, 'load'
  for mapped, whole in run_processes(*args, str(tmp_path / 'x')):
    assert whole <= count * mapped <= 1.01 * whole  # all have the norms


def test_where_params_belong_is_said_before_they_are_read(tmp_path):
  rules = kvjax.sharding.Rules(heads='m')
  with pytest.raises(ValueError, match='need a mesh: give mesh='):
    load_checkpoint(tmp_path, rules=rules)
  with pytest.raises(ValueError, match="mesh axis 'm', and the mesh has x"):
    load_checkpoint(tmp_path, mesh=jax.make_mesh((1,), ('x',)), rules=rules)
  with pytest.raises(ValueError, match="mesh={'m': 1} has no devices"):
    load_checkpoint(GOLDEN / 'llama', mesh={'m': 1}, rules=rules)
  with pytest.raises(ValueError, match="mesh={'m': 1} has no devices"):
    kvjax.init_cache(on_mesh.CONFIG, 1, 8, mesh={'m': 1}, rules=rules)


def test_names_without_the_prefix(tmp_path):
  """GPT-2 as first published: no `transformer.`, and its masks as buffers."""

  def bare(tensors):
    named = {k.removeprefix('transformer.'): v for k, v in tensors.items()}
    return named | {'h.0.attn.bias': np.ones((1, 1, 4, 4), np.float32)}

  _, params = load_checkpoint(altered(tmp_path, 'gpt2', tensors=bare))
  _, want = load_checkpoint(GOLDEN / 'gpt2')
  jax.tree.map(np.testing.assert_array_equal, params, want)


def test_copies_of_tied_weights_are_allowed(tmp_path):
  head = lambda x: x | {'lm_head.weight': x['model.embed_tokens.weight']}
  config, params = load_checkpoint(altered(tmp_path, 'qwen3', tensors=head))
  assert config.tied and 'head' not in params


def test_layers_of_multi_token_prediction_are_left_out(tmp_path):
  extra = {'model.layers.2.eh_proj.weight': np.zeros((3, 3), np.float32)}
  path = altered(tmp_path, 'deepseek_v3', tensors=lambda x: x | extra)
  config, params = load_checkpoint(path)
  assert len(config.layers) == len(params['layers']) == 2


def test_a_constant_of_another_value_is_refused(tmp_path):
  """Apertus stores the constants of its activation, and they may be absent."""
  beta = 'model.layers.1.mlp.act_fn.beta'
  less = lambda x: {k: v for k, v in x.items() if k != beta}
  want = load_checkpoint(GOLDEN / 'apertus')[1]
  found = load_checkpoint(altered(tmp_path, 'apertus', tensors=less))[1]
  jax.tree.map(np.testing.assert_array_equal, found, want)
  for bad in (0.25, [0.5]):
    other = lambda x, bad=bad: x | {beta: np.asarray(bad, np.float32)}
    path = altered(tmp_path / str(bad), 'apertus', tensors=other)
    with pytest.raises(ValueError, match=f'{beta} is .*; only 0.5 is supp'):
      load_checkpoint(path)


def test_older_and_newer_keys_say_the_same():
  shared = {
    'model_type': 'llama',
    'vocab_size': 97,
    'hidden_size': 24,
    'intermediate_size': 28,
    'num_hidden_layers': 1,
    'num_attention_heads': 3,
    'max_position_embeddings': 64,
  }
  scaling = {'factor': 4.0, 'original_max_position_embeddings': 16}
  older = shared | {
    'torch_dtype': 'bfloat16',
    'rope_theta': 5e5,
    'rope_scaling': {'type': 'yarn', **scaling},
  }
  newer = shared | {
    'dtype': 'bfloat16',
    'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 5e5, **scaling},
  }
  assert parse_config(older) == parse_config(newer)
  assert parse_config(older).dtype == 'bfloat16'


def test_config_is_hashable_and_found_by_file_or_folder():
  config = load_config(GOLDEN / 'llama')
  assert hash(config) == hash(load_config(GOLDEN / 'llama' / 'config.json'))


def test_tables_are_consistent():
  for family in FAMILIES.values():
    assert group_by_place(family.rows)
    for row in family.rows:
      assert row.shape and row.place, row


def test_formulas_of_shapes():
  letters = {'N': 6, 'K': 2, 'H': 5, 'E': 3}
  assert evaluate('N*(H+E)', letters) == 48
  assert evaluate('(N+K+K)*H', letters) == 50
  assert evaluate('3*N*H', letters) == 90


def test_transformations():
  rows = parse_table("""
    a.*   b.*
      x   N H   y   [1:] transpose
      x   N H   z   [:1:3]
  """)
  x = np.arange(12).reshape(3, 4)
  np.testing.assert_array_equal(rows[0].read(x, {}), x[1:].T)
  np.testing.assert_array_equal(rows[1].read(x, {}), x[:, 1:3])


PEAK = """
import gc, pathlib, re, sys
import jax
jax.config.update('jax_platforms', 'cpu')
from kvjax.checkpoints import load_checkpoint

def memory(field):
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(field + r':\\s+(\\d+) kB', status)[1]) * 1024

golden, *paths = sys.argv[1:]
load_checkpoint(golden)  # what the first call costs, whatever its size
for path in paths:
  for dtype in 'float32', 'bfloat16':
    gc.collect()
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak so far
    before = memory('VmRSS')
    config, params = load_checkpoint(path, dtype)
    model = sum(x.nbytes for x in jax.tree.leaves(params))
    print(model, (memory('VmHWM') - before) / model)
    del params
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_host_memory_stays_within_a_fifth_of_the_model(tmp_path):
  """Even of a model that is one embedding, whose copy is in the file too.

  Resident pages are counted, those of mapped files among them.
  """
  hidden, vocabulary, pair = 512, 40000, (512, 512)
  shapes = {
    'self_attn.q_proj': pair,
    'self_attn.k_proj': (256, hidden),
    'self_attn.v_proj': (256, hidden),
    'self_attn.o_proj': pair,
    'mlp.gate_proj': pair,
    'mlp.up_proj': pair,
    'mlp.down_proj': pair,
    'input_layernorm': (hidden,),
    'post_attention_layernorm': (hidden,),
  }
  shapes = {f'layers.0.{name}': shape for name, shape in shapes.items()}
  shapes |= {'embed_tokens': (vocabulary, hidden), 'norm': (hidden,)}

  def tensors(dtype):
    found = {
      f'model.{name}.weight': np.ones(shape, dtype)
      for name, shape in shapes.items()
    }
    return found | {'lm_head.weight': found['model.embed_tokens.weight']}

  config = lambda c: (
    c
    | {
      'vocab_size': vocabulary,
      'hidden_size': hidden,
      'intermediate_size': hidden,
      'num_hidden_layers': 1,
      'num_attention_heads': 16,
      'head_dim': 32,
      'num_key_value_heads': 8,
      'tie_word_embeddings': True,
    }
  )
  paths = [
    altered(tmp_path / str(i), 'llama', config, lambda _, x=x: tensors(x))
    for i, x in enumerate((np.float32, jnp.bfloat16))
  ]
  run = subprocess.run(
    [sys.executable, '-c', PEAK, str(GOLDEN / 'llama'), *map(str, paths)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  for line in run.stdout.splitlines():
    model, share = map(float, line.split())
    assert model > 40e6 and 0.7 < share <= 1.2, run.stdout


def test_a_snapshot_of_the_hub(tmp_path):
  """What `snapshot_download` returns offline: links into a folder of blobs."""
  hub = pytest.importorskip('huggingface_hub')
  commit = 'ab' * 20
  folder = tmp_path / 'models--someone--tiny'
  snapshot = folder / 'snapshots' / commit
  for part in (snapshot, folder / 'blobs', folder / 'refs'):
    part.mkdir(parents=True)
  (folder / 'refs' / 'main').write_text(commit)
  for index, file in enumerate(sorted((GOLDEN / 'llama').iterdir())):
    blob = folder / 'blobs' / f'{index:040x}'
    blob.write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(f'../../blobs/{blob.name}')
  path = hub.snapshot_download(
    'someone/tiny', cache_dir=tmp_path, local_files_only=True
  )
  config, params = kvjax.load_checkpoint(path)
  want_config, want = kvjax.load_checkpoint(GOLDEN / 'llama')
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, params, want)
