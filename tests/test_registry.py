"""Registering a function under a name that is taken."""

import pytest

from lca.registry import Registry


def defined(name, value, module=__name__):
  """Returns a function that returns `value`, as if `module` had defined it."""

  def function():
    return value

  function.__name__ = function.__qualname__ = name
  function.__module__ = module
  return function


def test_what_is_defined_again_takes_its_place():
  """Happens when a notebook's cell runs twice, or a file is loaded again."""
  registry = Registry('rule', [defined('mine', 1), defined('other', 2)])
  registry.register(defined('mine', 3))
  assert [rule() for rule in registry.values()] == [3, 2]


@pytest.mark.parametrize('name', [None, 'mine'])
def test_another_function_of_the_name_is_refused(name):
  registry = Registry('rule', [defined('mine', 1)])
  other = defined('mine' if name is None else 'yours', 2, module='elsewhere')
  with pytest.raises(ValueError, match="another rule 'mine' already"):
    registry.register(other, name=name)
  assert registry['mine']() == 1
