"""What compiled programs move, from real programs of eight devices and text."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from kvjax.sharding import assert_moves, collectives
from tests.sharding.eight_devices import run_lines

HLO = pathlib.Path(__file__).parent / 'hlo'


@pytest.fixture(scope='module')
def eight_devices():
  """What kvjax.sharding found in a process of eight devices."""
  (found,) = run_lines('tests.sharding.programs')
  return found


FLOAT = 4
MOVES = {
  'contracted': [
    ('all-reduce', 4 * 32 * FLOAT, 'f32[4,32]', 'layer_3/attend', 0)
  ],
  'gathered': [('all-gather', 64 * 32 * FLOAT, 'f32[64,32]', 'w', 0)],
  'summed_in_loop': [
    ('all-reduce', 2 * 64 * FLOAT, 'f32[2,64]', 'x', 0),
    ('all-reduce', 2 * 64 * FLOAT, 'f32[2,64]', '', 1),
  ],
  'nested': [('all-reduce', 4 * 64 * FLOAT, 'f32[4,64]', 'steps/layer_3', 2)],
  'in_condition': [('all-reduce', FLOAT, 'f32[1]', '', 1)],
  'exchanged': [('all-to-all', 8 * 2 * 8 * FLOAT, '8 f32[2,8]', '', 0)],
  'combined': [
    ('all-reduce', (128 + 32) * FLOAT, 'f32[2,64] + f32[1,32]', 'x', 0)
  ],
  'shifted': [('collective-permute', 2 * 64 * FLOAT, 'f32[2,64]', 'x', 0)],
  'branches': 2 * [('all-reduce', 4 * 32 * FLOAT, 'f32[4,32]', '', 0)],
  'one_device': [],
  'heads': [
    ('all-reduce', 4 * 64 * FLOAT, shape, scope, 0)
    for shape, scope in (
      ('f32[4,1,64]', 'embedding'),
      ('f32[64,4]', 'layer_0/OI,MI->OM'),
      ('f32[64,4]', 'layer_0/mlp/OI,MI->OM'),
      ('f32[64,4]', 'layer_1/OI,MI->OM'),
      ('f32[64,4]', 'layer_1/mlp/OI,MI->OM'),
    )
  ],
}


# The loop over tokens is around the step.
MOVES['generated'] = [(*x[:4], 1) for x in MOVES['heads'][:3]]


@pytest.mark.parametrize('name', MOVES)
def test_finds_what_a_program_exchanges(name, eight_devices):
  assert eight_devices['moves'][name] == [list(x) for x in MOVES[name]]


def test_the_text_of_a_program_says_the_same(eight_devices):
  for name, text in eight_devices['texts'].items():
    moves = [list(x) for x in collectives(text)]
    assert moves == eight_devices['moves'][name], name


def test_what_is_gathered_has_the_scope_or_the_name_of_its_operand(
  eight_devices,
):
  """XLA takes these gathers out of loops; newer versions then drop the name."""
  scopes = {x[3] for x in eight_devices['moves']['slots']}
  assert scopes in (
    {f'layer_{n}/{x}' for n in (0, 1)} for x in ('attend', 'cache')
  )
  scopes = {x[3] for x in eight_devices['moves']['experts']}
  weights = {f"params['layers'][0]['mlp']['{x}']" for x in ('gate', 'up')}
  weights.add("params['layers'][0]['mlp']['down']")
  assert scopes in ({'layer_0/experts'}, weights)


@pytest.mark.parametrize(
  'case',
  ['heads', 'slots_of_params', 'experts_of_cache', 'others', 'nothing'],
)
def test_passes(case, eight_devices):
  assert eight_devices['errors'][case] == ''


LOCAL = 'of which one device stores'
ERRORS = {
  'heads_of_a_kind': ('all-reduce: 5, and at most 4 are allowed.',),
  'heads_of_all_kinds': (
    'collectives of all kinds: 5, and at most 3 are allowed.',
    '2 x  all-reduce  1,024  f32[64,4]        0  layer_*/mlp/OI,MI->OM\n',
  ),
  'slots': (
    '4 x  all-gather  131,072  f32[4,2,256,16]      0  layer_*/',
    f"half of cache.stores[0]['key'], {LOCAL} 16,384 bytes.",
  ),
  # Of a coded stream the codes count: 4 x 2 x 32 x 16 of one byte.
  'coded_slots': (f"half of cache.stores[0]['key'], {LOCAL} 4,096 bytes.",),
  'experts': (
    'x  all-gather  65,536  f32[8,32,64]      0  ',
    f"params['layers'][0]['mlp']['down'], {LOCAL} 8,192 bytes.",
  ),
  'coded_experts': (
    f"params['layers'][0]['mlp']['down'], {LOCAL} 2,048 bytes.",
  ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_shows_what_moves_too_much(case, eight_devices):
  error = eight_devices['errors'][case]
  assert error.startswith('AssertionError: The program moves more')
  for text in ERRORS[case]:
    assert text in error


@pytest.mark.parametrize(
  'case, message',
  [
    ('others_without_cache', 'no argument of the program is cache: give'),
    ('without_params', "mapping with the keys 'layers' and 'embedding'"),
    ('heads_unknown_kind', "most limits the unknown kind 'all_reduce'; known"),
    ('heads_negative', 'most=-1 must be whole numbers from 0 up.'),
    ('heads_unknown_group', "no_gather_of=('weights',) must be a tuple"),
  ],
)
def test_refuses(case, message, eight_devices):
  error = eight_devices['errors'][case]
  assert error.startswith('ValueError: ') and message in error


def test_refuses_what_is_not_compiled():
  lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(3))
  with pytest.raises(ValueError, match='compiled is of type Lowered: give'):
    collectives(lowered)  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match='compiled is of type str: give'):
    assert_moves('', no_gather_of=())  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match='is no HLO of a compiled program'):
    collectives(lowered.as_text())


# Forms of GPU and TPU compilers, which overlap collectives with other work.
ASYNCHRONOUS = (HLO / 'asynchronous.txt').read_text()


def test_an_asynchronous_collective_is_one_of_its_result():
  assert collectives(ASYNCHRONOUS) == (
    ('all-gather', 1024, 'f32[16,16]', "params['up']", 0),
    ('all-gather', 40, 's8[16] + u8[24]', '', 0),
    ('all-reduce', 32, 'f32[8]', 'layer_1/mlp', 0),
    ('all-reduce', 48, 'f32[8] + f32[4]', '', 0),
    ('all-reduce', 32, 'f32[8]', '', 0),
    ('reduce-scatter', 8, 'f32[2]', '', 0),
    ('collective-permute', 12, 'f16[6]', '', 0),
    ('all-to-all', 64, 'bf16[8,4]', '', 0),
    ('collective-broadcast', 3, 's4[5]', '', 0),
    ('all-gather', 7, 'pred[<=7]', '', 0),
  )


CALLED = (HLO / 'called.txt').read_text()


def test_a_called_computation_is_as_deep_as_its_caller():
  send = ('ragged-all-to-all', 16, 'f32[4]', 'layer_2')
  assert collectives(CALLED) == ((*send, 0), (*send, 1), (*send, 1))
