"""Bad command lines end in one line and status 2, before any compilation."""

import importlib
import importlib.util
import re
import sys

import jax
import pytest

import experiments
from experiments import launch
from experiments.aggregate import __main__ as aggregate
from experiments.sweep import grid
from experiments.sweep.status_line import show_status
from tests.experiments.commands import ROOT, run

BAD = {
  'unknown_variant': (['--variant=mxa'], "variant='mxa' is unknown"),
  'missing_text': (['--text=no/such.txt'], "text='no/such.txt' cannot be read"),
  'empty_text': (['--text={empty}'], 'has 0 bytes'),
  'mistyped_override': (['--config.model.widht=3'], 'no field'),
  'mistyped_value': (['--config.training.steps=abc'], "'abc'"),
  'unknown_setting': (['--config=configs/compare.py:big'], "setting='big'"),
  'missing_config': (['--config=configs/no.py'], 'cannot be read'),
  'unknown_flag': (['--varaint=mha'], 'varaint'),
  'no_flag': (['mha'], "'mha' is no flag"),
  'no_variant': (['--variant='], 'at least one'),
  'long_prompt': (['--prompt=' + 'a' * 400], 'exceed capacity=512'),
  'indivisible_heads': (['--config.model.num_kv_heads=3'], 'not a multiple'),
  'no_steps_to_time': (['--config.pace.steps=0'], 'pace.steps=0'),
  'odd_rotary': (['--config.model.rotary_width=7'], 'Rotary width=7'),
  'negative_temperature': (['--temperature=-1'], 'temperature=-1.0'),
  'top_p_of_0': (['--top_p=0'], 'top_p=0.0'),
}


@pytest.mark.parametrize('name', BAD)
def test_compare_refuses(name, tmp_path, commands):
  check(commands, 'compare', name, tmp_path)


def test_compare_refuses_by_itself(tmp_path):
  check(run, 'compare', 'unknown_variant', tmp_path)


def check(run_command, module, name, tmp_path):
  """One line that says why, status 2, nothing compiled, nothing written."""
  flags, words = BAD[name]
  (tmp_path / 'empty').write_text('')
  flags = [flag.format(empty=tmp_path / 'empty') for flag in flags]
  ended = run_command(module, *flags, f'--workdir={tmp_path / "out"}')
  assert ended.code == 2
  assert ended.out == ''
  assert 'XLA compilation' not in ended.err
  lines = ended.err.splitlines()
  (line,) = [x for x in lines if 'Finished tracing' not in x]
  assert line.startswith('compare: ') and words in line
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('module', 'flags', 'words'),
  [
    ('sweep', ['--grid=a'], "grid='a' must be name=value"),
    ('sweep', ['--experiment=nope'], "experiment='nope' is unknown"),
    ('sweep', ['seed=0,1'], "'seed=0,1' is no flag"),
    ('sweep', ['a', '--', 'b'], "'a' is no flag"),
    ('sweep', ['--experiment=nope', '--', 'b'], "experiment='nope' is unknown"),
    ('aggregate', [], 'No files'),
    ('aggregate', ['--format=pdf', 'x.jsonl'], "format='pdf' is unknown"),
    ('aggregate', ['no.jsonl'], 'no.jsonl cannot be read'),
    ('benchmark', ['--sections=step,stp'], "sections: 'stp' is unknown"),
    ('benchmark', ['--compare=a'], 'compare takes two files'),
    ('benchmark', [f'--compare={ROOT},b'], 'cannot be read'),
    ('scaling', ['--workdir=/dev/null/x'], "'/dev/null/x' cannot be written"),
  ],
)
def test_the_others_refuse(module, flags, words, commands):
  ended = commands(module, *flags)
  assert ended.code == 2
  assert len(ended.err.strip().splitlines()) == 1 and words in ended.err


MODULES = sorted(
  path.parent.name for path in ROOT.glob('experiments/*/__main__.py')
)


@pytest.mark.parametrize('module', MODULES)
def test_every_flag_is_in_the_help(module, commands):
  """The flags that the source defines, counted in the text of the module."""
  source = (ROOT / 'experiments' / module / '__main__.py').read_text()
  called = r'(?:DEFINE_\w+|_text|_int|_real|_bool)\(\s*\'(\w+)\''
  flags = set(re.findall(called, source))
  if 'define_config()' in source:
    flags.add('config')
  ended = commands(module, '--help')
  listed = set(
    re.findall(r'^  --(?:\[no\])?(\w+)[:,]', ended.out, re.MULTILINE)
  )
  assert flags and flags <= listed, flags - listed


def test_a_line_says_what_to_install(monkeypatch):
  find = importlib.util.find_spec
  absent = lambda name, *rest: name != 'ml_collections' and find(name, *rest)
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda *given: absent(*given) or None
  )
  with pytest.raises(SystemExit, match='pip install ml_collections$'):
    importlib.reload(experiments)


def test_a_grid_is_a_product_and_keeps_tuples_whole():
  found = grid.points(['a=1,2', 'b=(1,2),x'])
  assert found == [
    {'a': '1', 'b': '(1,2)'},
    {'a': '1', 'b': 'x'},
    {'a': '2', 'b': '(1,2)'},
    {'a': '2', 'b': 'x'},
  ]
  assert grid.points([]) == [{}]


@pytest.mark.parametrize('axes', [['a=1', 'a=2'], ['=1'], ['a='], ['a']])
def test_a_bad_grid_is_refused(axes):
  with pytest.raises(ValueError, match='grid='):
    grid.points(axes)


def test_a_sweep_records_failures_and_resumes(tmp_path):
  def run(value, code):
    return grid.run_point(
      [sys.executable, '-c', code], {'a': value}, tmp_path / value
    )

  bad, good = run('1', 'raise SystemExit("bad point")'), run('2', 'pass')
  assert (bad['status'], bad['code'], bad['error']) == (
    'failed',
    1,
    'bad point',
  )
  assert good['status'] == 'done' and 'skipped' not in good
  assert run('2', 'pass')['skipped']
  assert 'skipped' not in run('2', 'print()')  # another command
  assert 'skipped' not in run('1', 'pass')  # what failed is tried again


def test_a_point_that_takes_too_long_has_failed(tmp_path):
  code = 'import time; time.sleep(60)'
  found = grid.run_point(
    [sys.executable, '-c', code], {}, tmp_path, timeout=0.2
  )
  assert found['status'] == 'failed' and '0.2 s' in found['code']


def test_a_running_point_is_watched(tmp_path):
  code = 'import time; print("half"); time.sleep(2.5); print("all")'
  seen = []
  found = grid.run_point(
    [sys.executable, '-S', '-c', code],
    {},
    tmp_path,
    watch=lambda *state: seen.append(state),
  )
  assert found['status'] == 'done'
  assert seen and {line for _, line in seen} <= {'', 'half'}
  assert seen[-1][1] == 'half' and seen[-1][0] >= 1
  assert (tmp_path / 'log.txt').read_text() == 'half\nall\n'


def test_a_sweep_says_every_minute_how_far_it_is(capsys):
  with show_status() as watch:
    for seconds in (1.0, 59.0, 60.5, 61.5, 119.0, 121.0):
      watch(seconds, f'step {seconds:.0f}\x1b[2J')
  assert capsys.readouterr().err == '  60 s  step 60[2J\n  121 s  step 121[2J\n'


def test_a_point_is_flags_and_a_folder():
  point = {'model.width': '32', '--text': 'a/b.txt'}
  assert grid.overrides(point) == ['--config.model.width=32', '--text=a/b.txt']
  # A name in which a sign is replaced could be that of another point.
  assert grid.folder(point).startswith('model.width=32,text=a_b.txt-')
  assert grid.folder({'model.width': '32'}) == 'model.width=32'


def test_conditions_are_field_and_value():
  assert aggregate.conditions(['a=b', 'c=d=e']) == {'a': 'b', 'c': 'd=e'}
  with pytest.raises(ValueError, match="where='a' must be field=value"):
    aggregate.conditions(['a'])


@pytest.mark.parametrize(
  ('seconds', 'seen', 'line'),
  [
    (1.25, True, 'compiled step in 1.2 s\n'),
    (0.75, True, ''),
    (1.25, False, ''),
  ],
)
def test_a_long_compilation_is_one_line(
  monkeypatch, capsys, seconds, seen, line
):
  monkeypatch.setattr(launch, 'can_show', lambda: seen)
  launch._announce(launch.COMPILED, seconds, fun_name='step')
  launch._announce('/jax/another/event', 9.0)
  assert capsys.readouterr().err == line


def test_the_event_of_a_compilation_is_the_one_that_jax_sends():
  seen = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **more: seen.append(event)
  )
  jax.jit(lambda x: x * 7.125)(1.0)
  assert launch.COMPILED in seen
