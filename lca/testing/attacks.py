"""Checks of attacks on updates."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from lca import options
from lca.aggregators import rules
from lca.attacks import Attack
from lca.attacks.base import Knowledge, keep_updates
from lca.testing.attack_properties import ATTACK_PROPERTIES, bound
from lca.testing.checking import Report, Subject, named_arguments
from lca.testing.examples import Setting
from lca.typing import Update, Updates


def check_attack(
  attack: Attack | Callable[..., Updates],
  *,
  f: int = 3,
  n: int = 11,
  knowledge: Knowledge = 'all',
  aggregate: Callable[[Updates], Update] = rules.median,
  except_for: Mapping[str, str] | None = None,
  on_failure: Literal['raise', 'return'] = 'raise',
) -> Report:
  """Checks that an attack on updates does what every attack should do.

  It leaves honest rows as they are, keeps dtypes, can be compiled and vmapped,
  does not depend on the order of the honest clients, and knows no more than it
  says. `lca.testing.attack_properties` documents each property. If a property
  fails, the error shows it on a small example, as code to paste.

  Args:
    attack: an `Attack`, or a function `(updates, *, byzantine, key=None, ...)
      -> updates` (see `lca.attacks.from_function`).
    f: number of Byzantine clients.
    n: number of clients.
    knowledge: `'byzantine'` also checks that the attackers do not know the
      honest clients' updates.
    aggregate: the server's rule, for an attack that tries it.
    except_for: properties that the attack lacks on purpose: their names, each
      with the reason.
    on_failure: `'raise'` raises an error if a property fails, `'return'`
      returns the report in any case.

  Returns:
    The report.

  Raises:
    PropertyFailed: an AssertionError; a property fails.
    TypeError: `attack` is no attack on updates.
    ValueError: n, f, `knowledge` or the name of a property is impossible.

  Examples:
    An attack that also changes the last honest client:

    >>> from lca import attacks, testing
    >>> def flip_too_many(updates, *, byzantine):
    ...   mask = byzantine.at[-1].set(True)
    ...   return attacks.sign_flip(updates, byzantine=mask)
    >>> report = testing.check_attack(flip_too_many, on_failure='return')
    >>> print([failed.name for failed in report.failures])
    ['honest_rows']
  """
  return attack_subject(
    attack,
    f=f,
    n=n,
    knowledge=knowledge,
    aggregate=aggregate,
    except_for=except_for,
  ).check(on_failure)


def attack_tests(
  attack: Attack | Callable[..., Updates], **about: Any
) -> Callable[..., None]:
  """Returns a test for pytest, with one case for each property of an attack.

  Args:
    attack: see `check_attack`.
    **about: see `check_attack`.
  """
  return attack_subject(attack, **about).tests()


def attack_subject(
  attack: Attack | Callable[..., Updates],
  *,
  f: int = 3,
  n: int = 11,
  knowledge: Knowledge = 'all',
  aggregate: Callable[[Updates], Update] = rules.median,
  except_for: Mapping[str, str] | None = None,
) -> Subject:
  """Returns the attack as `Subject`; see `check_attack`."""
  if isinstance(attack, Attack):
    if attack.on_updates is keep_updates:
      raise TypeError(
        'check_attack takes an attack on the updates, and this one leaves them '
        'as they are'
      )
  elif 'byzantine' not in named_arguments(attack):
    raise TypeError(
      'check_attack takes an Attack, or a function (updates, *, byzantine), '
      f'got {attack!r}'
    )
  options.one_of('all', 'byzantine')('knowledge', knowledge)
  n, f = options.whole(1)('n', n), options.whole(1)('f', f)
  if f >= n:
    raise ValueError(f'somebody must be honest, got n={n}, f={f}')
  function = bound(attack, knowledge=knowledge, aggregate=aggregate)
  told = '' if knowledge == 'all' else f', knowledge={knowledge!r}'
  if aggregate is not rules.median:
    told += ', aggregate=aggregate'
  return Subject(
    'attack',
    attack.on_updates if isinstance(attack, Attack) else attack,
    Setting(n, f, knowledge),
    lambda f: f'attack_properties.bound(attack{told})',
    lambda f: function,
    except_for or {},
    ATTACK_PROPERTIES,
  )
