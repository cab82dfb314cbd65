"""Registries: functions by name, such as rules, attacks, models and data sets.

A `Registry` holds functions of one kind by name. It tells which options each
function takes and with which defaults, and it suggests the nearest name for an
unknown one. A function that a user registers becomes a preset, a config key and
a line in reports, like the functions of `lca` itself.
"""

import difflib
import importlib
import inspect
import os
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar('F', bound=Callable[..., Any])

REQUIRED = inspect.Parameter.empty
"""The `default` of a parameter that has no default."""


class Registry(dict[str, F]):
  """Functions of one kind by name.

  Attributes:
    kind: what messages call one of the functions, such as `'rule'`.
    brought: names of arguments that the caller passes in every call, such as a
      PRNG key. They are not options.
    of_data: True if the first positional parameter of every function is data,
      such as updates. It is not an option either, whatever its name.

  Examples:
    >>> RULES = Registry('rule', of_data=True)
    >>> @RULES.register
    ... def scaled(updates, *, by, plus=0.0):
    ...   return by * updates + plus
    >>> RULES.options('scaled', required=['by'])
    {'by': None, 'plus': 0.0}
    >>> RULES.find('scale')
    Traceback (most recent call last):
    ValueError: unknown rule 'scale'; did you mean 'scaled'? there are: scaled
  """

  def __init__(
    self,
    kind: str,
    functions: Iterable[F] = (),
    *,
    brought: Iterable[str] = (),
    of_data: bool = False,
  ):
    super().__init__()
    self.kind, self.brought = kind, frozenset(brought)
    self.of_data = of_data
    for function in functions:
      self.register(function)

  def register(self, function: F | None = None, *, name: str | None = None):
    """Adds a function; usable as a decorator, with or without a name.

    A function that is defined again replaces the earlier definition, as when a
    notebook's cell runs twice.

    Args:
      function: the function to add; None returns a decorator.
      name: its name in configs; None takes the function's own name.

    Returns:
      The function, unchanged.

    Raises:
      ValueError: another function has this name already.
    """
    if function is None:
      return lambda function: self.register(function, name=name)
    name = name or function.__name__
    if _origin(self.get(name, function)) != _origin(function):
      raise ValueError(
        f'there is another {self.kind} {name!r} already; choose another name'
      )
    self[name] = function
    return function

  def find(self, name: str) -> F:
    """Returns the function that is registered under a name.

    Raises:
      ValueError: the name is unknown; the message suggests the nearest name.
    """
    if name not in self:
      raise ValueError(unknown(self.kind, name, {self.kind: self}))
    return self[name]

  def parameters(self, name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function that are options, by name."""
    return options_of(self.find(name), self.brought, self.of_data)

  def options(self, name: str, required: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the options of a function and their defaults.

    Args:
      name: the function's name.
      required: options without a default that the caller will set later; their
        value in the result is None.

    Returns:
      The defaults by option name.

    Raises:
      TypeError: an option that is not in `required` has no default.
    """
    parameters = self.parameters(name)
    without = {k for k, p in parameters.items() if p.default is REQUIRED}
    if lacking := sorted(without - set(required)):
      raise TypeError(f'{self.kind} {name!r} has no default for {lacking}')
    return {
      k: None if k in without else p.default for k, p in parameters.items()
    }

  def check(self, name: str, given: Iterable[str]) -> None:
    """Checks the names of the options that a function is to be called with.

    Raises:
      ValueError: the function is unknown.
      TypeError: the function does not take an option, or a required option is
        missing.
    """
    check_options(f'{self.kind} {name!r}', self.parameters(name), given)


def options_of(
  function: Callable[..., Any],
  brought: Iterable[str] = (),
  of_data: bool = False,
) -> dict[str, inspect.Parameter]:
  """Returns the parameters of a function that can be given by name.

  Args:
    function: any callable; for a class, its constructor counts.
    brought: names of parameters to leave out.
    of_data: True leaves out the first positional parameter, too.
  """
  given = list(inspect.signature(function).parameters.values())
  if of_data and given and given[0].kind is not given[0].KEYWORD_ONLY:
    del given[0]
  return {
    p.name: p
    for p in given
    if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    and p.name not in brought
  }


def check_options(
  who: str, parameters: Mapping[str, inspect.Parameter], given: Iterable[str]
) -> None:
  """Checks the names of options against the parameters of their receiver.

  Args:
    who: what messages call the receiver, such as `"rule 'krum'"`.
    parameters: the parameters that the receiver takes, from `options_of`.
    given: the names of the options to check.

  Raises:
    TypeError: the receiver does not take an option, or an option without a
      default is missing.
  """
  given = set(given)
  if others := sorted(given - parameters.keys()):
    near = ''.join(_near(name, parameters) for name in others)
    raise TypeError(
      f'{who} takes no {", ".join(others)};{near} it takes: '
      f'{", ".join(sorted(parameters)) or "nothing"}'
    )
  required = {k for k, p in parameters.items() if p.default is REQUIRED}
  if lacking := sorted(required - given):
    raise TypeError(f'{who} needs {", ".join(lacking)}')


def type_of(parameter: inspect.Parameter) -> type | None:
  """Returns the single type of an option's annotation, not counting None.

  The result is None for an option without an annotation or with several types.

  Examples:
    >>> def function(a: int | None = None, b: str = '', c=0): ...
    >>> [type_of(p) for p in options_of(function).values()]
    [<class 'int'>, <class 'str'>, None]
  """
  union = typing.Union, types.UnionType
  hint = parameter.annotation
  hints = typing.get_args(hint) if typing.get_origin(hint) in union else [hint]
  if str in hints:  # a path may be given as text
    hints = [h for h in hints if h not in (pathlib.Path, os.PathLike)]
  others = [h for h in hints if h is not types.NoneType]
  single = len(others) == 1 and isinstance(others[0], type)
  # REQUIRED is `Parameter.empty`, the annotation of a bare parameter, too.
  return others[0] if single and others[0] is not REQUIRED else None


def unknown(kind: str, name: str, known: Mapping[str, Iterable[str]]) -> str:
  """Returns the error message for an unknown name.

  Args:
    kind: what the message calls the thing that was asked for.
    name: the unknown name.
    known: the names that exist, by kind.

  Examples:
    >>> print(unknown('preset', 'krom', {'rule': ['krum'], 'attack': ['zero']}))
    unknown preset 'krom'; did you mean 'krum'? there are:
      rule: krum
      attack: zero
  """
  near = _near(name, [each for names in known.values() for each in names])
  start = f'unknown {kind} {name!r};{near} there are:'
  if len(known) == 1:
    (names,) = known.values()
    return f'{start} {", ".join(sorted(names))}'
  lines = [
    f'  {kind}: {", ".join(sorted(names))}'
    for kind, names in known.items()
    if names
  ]
  return '\n'.join([start, *lines])


def import_module(name: str) -> types.ModuleType:
  """Imports a module of lca that needs more than JAX.

  Args:
    name: of the module, such as `'lca.data'`.

  Raises:
    ImportError: a package that the module needs is not installed; the message
      says how to install it.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    # A missing module of lca itself is a bug, not a missing package.
    if error.name is None or error.name.partition('.')[0] == 'lca':
      raise
    raise ImportError(
      f'{name} needs {error.name}, which is not installed; to install all '
      "that lca needs: pip install 'lca[all]'"
    ) from error


def _origin(function: Callable[..., Any]) -> Any:
  """Returns what identifies a definition: its module and qualified name.

  A callable without a qualified name, such as a `partial`, is its own identity.
  """
  name = getattr(function, '__qualname__', None)
  return (function.__module__, name) if name else function


def _near(name: str, known: Iterable[str]) -> str:
  """Returns the question " did you mean ...?", or '' if no name is close."""
  matches = difflib.get_close_matches(name, list(known), n=1)
  return f' did you mean {matches[0]!r}?' if matches else ''
