"""Old spellings of keyword arguments name the new ones."""

import inspect

import pytest

import kvjax
from kvjax.memory import compile_call, fit, plan
from kvjax.renamed import renamed_arguments

CONFIG = kvjax.ModelConfig(
  11, 8, (kvjax.Layer(kvjax.Grouped(2, 1, 4), kvjax.MLP(12)),)
)


@renamed_arguments(old='new')
def double(x: int, *, new: int = 2) -> int:
  """Returns a multiple."""
  return x * new


def test_a_new_spelling_and_the_signature_stay():
  assert double(3) == 6 and double(3, new=5) == 15
  assert list(inspect.signature(double).parameters) == ['x', 'new']
  assert double.__doc__ == 'Returns a multiple.'


def test_an_old_spelling_names_the_new_one():
  with pytest.raises(TypeError, match=r'double\(old=\) is spelled new= now'):
    double(3, **{'old': 5})


@pytest.mark.parametrize('function', (plan, fit, compile_call))
def test_kinds_is_the_one_spelling(function):
  with pytest.raises(TypeError, match=r'\(cache=\) is spelled kinds= now'):
    function(CONFIG, batch_size=1, capacity=8, cache=kvjax.Dense())


@pytest.mark.parametrize(
  ('old', 'new'), (('Row', 'PlannedBuffer'), ('Verdict', 'InPlaceReport'))
)
def test_old_classes_of_memory_name_the_new_ones(old, new):
  with pytest.raises(AttributeError, match=f'memory.{new} now'):
    getattr(kvjax.memory, old)
  assert new in kvjax.memory.__all__
