"""Old spellings raise one line that names the new one."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import kvjax
from kvjax.memory import compile_call, fit, plan
from kvjax.renamed import renamed_arguments
from tests.facts import tiny

CONFIG = tiny.decoder(tiny.MLA)


@pytest.mark.parametrize('old', [{'absorb': True}, {'block': 4}])
@pytest.mark.parametrize('name', ['prefill', 'extend', 'decode_step'])
def test_old_arguments_of_steps(name, old):
  cache = kvjax.init_cache(CONFIG, 1, 4)
  tokens = jnp.zeros((1,) if name == 'decode_step' else (1, 2), jnp.int32)
  with pytest.raises(TypeError, match='has a new name: give options=kvjax.Dec'):
    getattr(kvjax, name)(CONFIG, tiny.params(CONFIG), cache, tokens, **old)
  assert not cache.length.is_deleted()


def test_old_arguments_of_forward_and_interop():
  tokens = tiny.tokens(1, 3)
  with pytest.raises(
    TypeError, match='absorb=...\\) has a new name: give form'
  ):
    kvjax.forward(CONFIG, tiny.params(CONFIG), tokens, absorb=True)
  with pytest.raises(
    TypeError, match='kind=...\\) has a new name: give kinds='
  ):
    kvjax.interop.init_cache(tiny.GQA, 1, 4, kind=kvjax.Dense())
  with pytest.raises(TypeError, match='has a new name: give mesh= and rules='):
    kvjax.load_checkpoint('absent', sharding=None)


def test_a_kind_with_a_method_of_an_old_name():
  with pytest.raises(TypeError, match='Mine.narrow has a new name: visible_th'):

    class Mine(kvjax.Kind):
      def narrow(self, visibility):
        return visibility


def test_a_variant_with_a_method_of_an_old_name():
  with pytest.raises(TypeError, match='Mine.leave has a new name: project_str'):

    class Mine(kvjax.Variant):
      def leave(self, params, x, table):
        return {}


def test_a_forced_form_is_the_same_but_for_rounding():
  params, tokens = tiny.params(CONFIG), tiny.tokens(2, 5)
  logits = [
    kvjax.extend(
      CONFIG,
      params,
      kvjax.init_cache(CONFIG, 2, 8),
      tokens,
      options=kvjax.DecodeOptions(form=form),
    )[0]
    for form in ('absorbed', 'expanded')
  ]
  tiny.close(*logits)
  assert jax.numpy.any(logits[0] != logits[1])


def test_modules_load_when_they_are_first_used():
  with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
    kvjax.nonsense  # noqa: B018
  assert {'liveness', 'load_checkpoint', 'memory'} <= set(dir(kvjax))
  assert kvjax.load_config('gpt-2').vocab_size == 50_257


@renamed_arguments(old='new=')
def double(x: int, *, new: int = 2) -> int:
  """Returns a multiple."""
  return x * new


def test_a_new_spelling_and_the_signature_stay():
  assert double(3) == 6 and double(3, new=5) == 15
  assert list(inspect.signature(double).parameters) == ['x', 'new']
  assert double.__doc__ == 'Returns a multiple.'
  with pytest.raises(
    TypeError, match=r'double\(old=...\) has a new name: .*new='
  ):
    double(3, **{'old': 5})


@pytest.mark.parametrize('function', (plan, fit, compile_call))
def test_kinds_is_the_one_spelling(function):
  with pytest.raises(
    TypeError, match=r'cache=...\) has a new name: give kinds='
  ):
    function(CONFIG, batch_size=1, capacity=8, cache=kvjax.Dense())


@pytest.mark.parametrize(
  ('old', 'new'), (('Row', 'PlannedBuffer'), ('Verdict', 'InPlaceReport'))
)
def test_old_classes_of_memory_name_the_new_ones(old, new):
  with pytest.raises(AttributeError, match=f'memory.{new} now'):
    getattr(kvjax.memory, old)
  assert new in kvjax.memory.__all__
