"""Checks of aggregation rules."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from lca import options
from lca.aggregators import Aggregator
from lca.testing.checking import Report, Subject, named_arguments
from lca.testing.examples import Promise, Setting
from lca.testing.rule_properties import RULE_PROPERTIES
from lca.typing import Updates


def check_rule(
  rule: Callable[..., Any],
  *,
  f: int = 0,
  n: int = 11,
  promise: Promise = 'none',
  except_for: Mapping[str, str] | None = None,
  brings: Callable[[Updates], Mapping[str, Any]] | None = None,
  on_failure: Literal['raise', 'return'] = 'raise',
) -> Report:
  """Checks that a rule has the properties that rules are expected to have.

  The rule is run on updates of several structures, dtypes and scales, with bad
  rows of every kind, compiled and not. `lca.testing.rule_properties` documents
  each property. If a property fails, the error shows it on the smallest example
  that was found, as code to paste.

  Args:
    rule: `(updates) -> update` or `(updates, f=...) -> update`, such as a rule
      of this library, a function of one's own, or one of another system (see
      `from_numpy`).
    f: the number of Byzantine clients that the rule should tolerate. It is
      passed to a rule with an argument f.
    n: number of clients.
    promise: the promise about what f clients may send: `'full'` (the update is
      bounded by the honest ones), `'hull'` (each coordinate lies between the
      honest ones), `'finite'` or `'none'`.
    except_for: properties that the rule lacks on purpose: their names, each
      with the reason.
    brings: returns further arguments of the rule for the given updates, such as
      `params`.
    on_failure: `'raise'` raises an error if a property fails, `'return'`
      returns the report in any case.

  Returns:
    The report.

  Raises:
    PropertyFailed: an AssertionError; a property fails.
    TypeError: `rule` is no rule.
    ValueError: n, f, the promise or the name of a property is impossible.

  Examples:
    A mean whose weights do not add up to 1:

    >>> import jax, jax.numpy as jnp
    >>> from lca import testing
    >>> def shrunken(updates):
    ...   return jax.tree.map(lambda x: jnp.sum(x, axis=0) / 12, updates)
    >>> testing.check_rule(shrunken)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    lca.testing.checking.PropertyFailed: shrunken (n=11, f=0, promise='none')...
  """
  return rule_subject(
    rule, f=f, n=n, promise=promise, except_for=except_for, brings=brings
  ).check(on_failure)


def rule_tests(rule: Callable[..., Any], **about: Any) -> Callable[..., None]:
  """Returns a test for pytest, with one case for each property of a rule.

  In a test file, one line tests a rule:

      test_my_rule = lca.testing.rule_tests(my_rule, f=2, promise='full')

  Args:
    rule: see `check_rule`.
    **about: see `check_rule`.
  """
  return rule_subject(rule, **about).tests()


def rule_subject(
  rule: Callable[..., Any],
  *,
  f: int = 0,
  n: int = 11,
  promise: Promise = 'none',
  except_for: Mapping[str, str] | None = None,
  brings: Callable[[Updates], Mapping[str, Any]] | None = None,
) -> Subject:
  """Returns the rule as `Subject`; see `check_rule`."""
  options.one_of(*get_args(Promise))('promise', promise)
  n, f = options.whole(1)('n', n), options.whole(0)('f', f)
  if isinstance(rule, Aggregator):
    raise TypeError(
      'check_rule takes a rule, got an Aggregator: give a function, such as '
      'lambda updates: aggregator.update(updates, aggregator.init(one))[0]'
    )
  if not callable(rule) or 'byzantine' in named_arguments(rule):
    raise TypeError(f'check_rule takes a rule, a function, got {rule!r}')
  if f >= n or (promise == 'hull' and 2 * f >= n):
    raise ValueError(
      f'promise={promise!r} is possible for f < '
      f'{"n / 2" if promise == "hull" else "n"}, got n={n}, f={f}'
    )
  if promise != 'none' and f == 0:
    raise ValueError(
      f'promise={promise!r} is about f clients: say how many, got f=0'
    )
  told = 'f' in named_arguments(rule)

  def bind(f: int) -> Callable[[Updates], Any]:
    hyper = {'f': f} if told else {}

    @functools.wraps(rule, assigned=('__name__',), updated=())
    def bound(updates: Updates) -> Any:
      return rule(updates, **hyper, **(brings(updates) if brings else {}))

    return bound

  def code(f: int) -> str:
    told_f = f', f={f}' if told else ''
    more = ', **brings(x)' if brings else ''
    if not told_f + more:
      return 'rule'
    return f'lambda x: rule(x{told_f}{more})'

  return Subject(
    'rule',
    rule,
    Setting(n, f, promise, told),
    code,
    bind,
    except_for or {},
    RULE_PROPERTIES,
  )
