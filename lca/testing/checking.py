"""Tests the properties of a rule or of an attack, and reports the faults."""

import functools
import inspect
import pathlib
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lca import options, registry
from lca.testing.examples import Example, Setting
from lca.testing.properties import NotApplicable, Property
from lca.testing.shrinking import shrink
from lca.typing import Updates

Status = Literal['held', 'failed', 'excepted', 'not tested']


class Result(NamedTuple):
  """The test of one property.

  Attributes:
    name: of the property.
    says: the property in a sentence.
    status: `'held'`, `'failed'`, `'excepted'` if it fails and is said to, or
      `'not tested'`.
    message: how it fails, why it is excepted or not tested, or that it has held
      though it was excepted.
    code: Python code that shows the fault on a small example; empty if there is
      none. The reader's rule is called `rule` in it, and an attack `attack`.
    updates: the updates of this example; None if there is none.
  """

  name: str
  says: str
  status: Status
  message: str = ''
  code: str = ''
  updates: Updates = None


class Report(NamedTuple):
  """The tests of all properties.

  Attributes:
    about: the rule or attack, and the setting.
    results: one for each property.
  """

  about: str
  results: tuple[Result, ...]

  @property
  def failures(self) -> tuple[Result, ...]:
    """The properties that failed."""
    return tuple(x for x in self.results if x.status == 'failed')

  def __str__(self) -> str:
    tested = sum(x.status in ('held', 'failed') for x in self.results)
    start = f'{self.about}: {len(self.failures)} of {tested} properties fail'
    for status in ('held', 'excepted', 'not tested'):
      others = [x for x in self.results if x.status == status and x.message]
      if others:
        told = ', '.join(f'{x.name} ({x.message})' for x in others)
        start += f'; {status}: {told}'
    parts = [start]
    for result in self.results:
      if result.status == 'failed':
        parts.append(
          f'{result.name}: {result.says}.\n  {result.message}\n\n'
          + '\n'.join(f'    {line}' for line in result.code.splitlines())
        )
    return '\n\n'.join(parts)


class PropertyFailed(AssertionError):
  """A rule or an attack lacks a property that it should have."""


class Subject:
  """A rule or an attack under test."""

  def __init__(
    self,
    noun: str,
    function: Callable[..., Any],
    setting: Setting,
    call: Callable[[int], str],
    bind: Callable[[int], Callable[..., Any]],
    except_for: Mapping[str, str],
    properties: Sequence[Property],
  ):
    """Describes the subject.

    Args:
      noun: 'rule' or 'attack', its name in the code of counterexamples.
      function: the rule or the attack, for its name.
      setting: see `Setting`.
      call: returns the code of the subject for the number f.
      bind: returns what is tested for the number f.
      except_for: reasons why it lacks properties, by their names.
      properties: all properties.

    Raises:
      ValueError: `except_for` has a name that is no property's.
    """
    self.noun, self.setting, self._call, self._bind = noun, setting, call, bind
    self._on_host = getattr(function, 'on_host', False)
    self.name = name_of(function)
    self.except_for = dict(except_for)
    names = [each.name for each in properties]
    for name in self.except_for:
      if name not in names:
        known = {f'properties of {noun}s': names}
        raise ValueError(registry.unknown('property', name, known))
    self.properties = [
      each
      for each in properties
      if each.promises is None or setting.promise in each.promises
    ]
    self._compiled = functools.cache(self._compile)

  def _compile(self, f):
    """Returns the compiled subject, or the subject if it cannot be compiled."""
    function = self._bind(f)
    compiled, can_be_compiled = jax.jit(function), True

    def called(*args):
      nonlocal can_be_compiled
      if can_be_compiled:
        try:
          return compiled(*args)
        except Exception:
          result = function(*args)  # raises the error without a compiler's
          can_be_compiled = False
          return result
      return function(*args)

    return called

  @property
  def about(self) -> str:
    """The name and the setting."""
    setting = self.setting
    promise = f', promise={setting.promise!r}' * (self.noun == 'rule')
    return f'{self.name} (n={setting.n}, f={setting.f}{promise})'

  def tests(self) -> Callable[..., None]:
    """Returns a test for pytest with one case for each property."""
    import pytest

    @pytest.mark.parametrize('tested', self.properties, ids=lambda x: x.name)
    def test_properties(tested):
      result = self.test(tested)
      if result.status == 'not tested':
        pytest.skip(result.message)
      if result.status == 'excepted':
        pytest.xfail(result.message)
      if result.status == 'failed':
        raise PropertyFailed(str(Report(self.about, (result,))))

    return test_properties

  def test(self, each: Property) -> Result:
    """Tests one property."""
    if each.traced and self._on_host:
      return Result(each.name, each.says, 'not tested', 'it calls NumPy')
    excepted = self.except_for.get(each.name)
    result = functools.partial(Result, each.name, each.says)
    try:
      for example in each.examples(self.setting):
        error = self._error(each, example)
        if error is not None:
          if excepted is not None:
            return result('excepted', excepted)
          small, error = self._smallest(each, example, error)
          code = self._code(each, small)
          return result('failed', _message(error), code, small.updates)
    except NotApplicable as reason:
      return result('not tested', str(reason))
    return result('held', '' if excepted is None else 'though excepted')

  def check(self, on_failure: Literal['raise', 'return']) -> Report:
    """Tests all properties; see `lca.testing.check_rule`.

    Raises:
      PropertyFailed: a property fails, and `on_failure` is `'raise'`.
    """
    options.one_of('raise', 'return')('on_failure', on_failure)
    report = Report(self.about, tuple(map(self.test, self.properties)))
    if report.failures and on_failure == 'raise':
      raise PropertyFailed(str(report))
    return report

  def _error(self, each: Property, example: Example) -> Exception | None:
    """Returns the error of an example, or None if it has the property."""
    compiled = each.compiled and not self._on_host
    choose = self._compiled if compiled else self._bind
    try:
      with np.errstate(all='ignore'):
        # A copy, as a faulty function may change it.
        updates = jax.tree.map(np.copy, example.updates)
        each.check(choose(example.f), updates, **each.arguments(example))
    except NotApplicable:
      raise
    except Exception as error:
      return error
    return None

  def _smallest(
    self, each: Property, example: Example, error: Exception
  ) -> tuple[Example, Exception]:
    """Returns the smallest example with the same fault, and its error."""

    def fails(smaller: Example) -> bool:
      other = self._error(each, smaller)
      return other is not None and _origin(other) == _origin(error)

    def all_smaller() -> Iterator[Example]:
      for setting in self.setting.smaller():
        yield from each.examples(setting)

    small = next(filter(fails, all_smaller()), example)
    small = shrink(small, fails)
    return small, self._error(each, small) or error

  def _code(self, each: Property, example: Example) -> str:
    """Returns code that shows the fault of an example."""
    text = _literal(example.updates)
    about = ''.join(
      f', {name}={value!r}' for name, value in each.arguments(example).items()
    )
    call = f'{self._call(example.f)}, updates{about}'
    lines = [
      'import jax.numpy as jnp' if 'jnp.' in text else '',
      'import numpy as np' if 'np.' in text.replace('jnp.', '') else '',
      f'from lca.testing import {self.noun}_properties',
      '',
      f'updates = {text}',
      f'{self.noun}_properties.{each.name}({call})',
    ]
    return '\n'.join(line for i, line in enumerate(lines) if line or i == 3)


def _origin(error: Exception) -> tuple[Any, ...]:
  """Returns the type of an error, and the line that has raised it.

  All errors that `lca.testing` raises itself are faults that it has found.
  """
  *_, last = traceback.extract_tb(error.__traceback__)
  if pathlib.Path(last.filename).parent == pathlib.Path(__file__).parent:
    return type(error), 'lca.testing'
  return type(error), last.filename, last.lineno


def name_of(function: Any) -> str:
  """Returns the name of a function, of a partial one, or of a class."""
  if isinstance(function, functools.partial):
    return name_of(function.func)
  return getattr(function, '__name__', None) or type(function).__name__


def _message(error: Exception) -> str:
  """Returns the first line of an error, and its type if it is unexpected."""
  text = str(error).strip().splitlines() or ['']
  if isinstance(error, AssertionError):
    return text[0]
  return f'{type(error).__name__}: {text[0]}'


def _literal(tree: Any) -> str:
  """Returns Python code of a tree of arrays."""
  if isinstance(tree, dict):
    items = (f'{k!r}: {_literal(v)}' for k, v in tree.items())
    return '{' + ', '.join(items) + '}'
  if isinstance(tree, list):
    return '[' + ', '.join(map(_literal, tree)) + ']'
  if isinstance(tree, tuple):
    return '(' + ''.join(f'{_literal(x)}, ' for x in tree) + ')'
  dtype = str(tree.dtype)
  module = 'jnp' if dtype == 'bfloat16' else 'np'
  if not tree.size:
    return f'{module}.zeros({tree.shape}, {module}.{dtype})'
  numbers = np.array2string(
    tree.astype(np.float32) if module == 'jnp' else tree,
    separator=', ',
    threshold=tree.size,
    floatmode='unique',
  )
  numbers = textwrap.fill(' '.join(numbers.split()), 76, subsequent_indent='  ')
  for word in ('nan', 'inf'):
    numbers = numbers.replace(word, f'np.{word}')
  return f'{module}.array({numbers}, {module}.{dtype})'


def named_arguments(function: Any) -> set[str]:
  """Returns the arguments of a function that may be passed by name."""
  try:
    parameters = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):  # it has no signature
    return set()
  return {x.name for x in parameters if x.kind is not x.POSITIONAL_ONLY}
