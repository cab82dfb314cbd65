"""Names of things: rules, attacks, models, data sets, and all the others.

A `Registry` holds functions of one kind by name. It knows what options each of
them takes and with which defaults, and it says what is near an unknown name.
What a user adds to a registry is from then on a preset, a config key and a line
in reports, like what `lca` brings.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar('F', bound=Callable[..., Any])

REQUIRED = inspect.Parameter.empty
"""Stands in the place of a default that an option does not have."""


class Registry(dict[str, F]):
  """Functions of one kind by name.

  Attributes:
    kind: what messages call one of them, such as `'rule'`.
    brought: names of arguments that the caller brings with every call, such as
      a PRNG key. They are nobody's options.
    of_data: True if the functions are of data, such as updates: their first
      positional parameter, whatever its name, is no option either.

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

    A function that is defined again, as when a notebook's cell runs twice,
    takes the place of its former self.

    Args:
      function: the one to add.
      name: its name in configs; None is the function's own.

    Returns:
      The function.

    Raises:
      ValueError: another function has this name already.
    """
    if function is None:
      return lambda function: self.register(function, name=name)
    name = name or function.__name__
    if _origin(self.get(name, function)) != _origin(function):
      raise ValueError(f'there is another {self.kind} {name!r} already')
    self[name] = function
    return function

  def find(self, name: str) -> F:
    """Returns the function of a name.

    Raises:
      ValueError: the name is unknown; the message says what is near it.
    """
    if name not in self:
      raise ValueError(unknown(self.kind, name, {self.kind: self}))
    return self[name]

  def parameters(self, name: str) -> dict[str, inspect.Parameter]:
    """Returns the options of a function: its parameters by name."""
    return options_of(self.find(name), self.brought, self.of_data)

  def options(self, name: str, required: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the options of a function and their defaults.

    Args:
      name: of the function.
      required: the options without a default that the caller will set; they are
        None in the result.

    Raises:
      TypeError: another option has no default.
    """
    parameters = self.parameters(name)
    without = {k for k, p in parameters.items() if p.default is REQUIRED}
    if lacking := sorted(without - set(required)):
      raise TypeError(f'{self.kind} {name!r} has no default for {lacking}')
    return {
      k: None if k in without else p.default for k, p in parameters.items()
    }

  def check(self, name: str, given: Iterable[str]) -> None:
    """Checks the names of the options that a function is to be given.

    Raises:
      ValueError: the function is unknown.
      TypeError: an option that it does not take, or one that it lacks.
    """
    check_options(f'{self.kind} {name!r}', self.parameters(name), given)


def options_of(
  function: Callable[..., Any],
  brought: Iterable[str] = (),
  of_data: bool = False,
) -> dict[str, inspect.Parameter]:
  """Returns the parameters of a function that can be given by name.

  Args:
    function: any; of a class they are those of its constructor.
    brought: names that are left out.
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
  """Checks the names of options against what somebody takes.

  Args:
    who: how messages name the one that takes them.
    parameters: what it takes, from `options_of`.
    given: the names of the options.

  Raises:
    TypeError: an option that is not taken, or one without default that lacks.
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
  """Returns the type of an option's values beside None, if it has just one.

  Examples:
    >>> def function(a: int | None = None, b: str = '', c=0): ...
    >>> [type_of(p) for p in options_of(function).values()]
    [<class 'int'>, <class 'str'>, None]
  """
  union = typing.Union, types.UnionType
  hint = parameter.annotation
  hints = typing.get_args(hint) if typing.get_origin(hint) in union else [hint]
  found = [h for h in hints if h is not types.NoneType]
  one = len(found) == 1 and isinstance(found[0], type)
  return found[0] if one and found[0] is not REQUIRED else None


def unknown(kind: str, name: str, known: Mapping[str, Iterable[str]]) -> str:
  """Returns what to say of an unknown name.

  Args:
    kind: of the thing that is asked for.
    name: the unknown one.
    known: the names there are, by the kind of what they name.

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
  lines = [f'  {k}: {", ".join(sorted(names))}' for k, names in known.items()]
  return '\n'.join([start, *lines])


def _origin(function: Callable[..., Any]) -> Any:
  """Returns where a function was defined, or itself where it does not tell."""
  name = getattr(function, '__qualname__', None)
  return (function.__module__, name) if name else function


def _near(name: str, known: Iterable[str]) -> str:
  found = difflib.get_close_matches(name, list(known), n=1)
  return f' did you mean {found[0]!r}?' if found else ''
