"""Properties of rules and of attacks, and the examples they are tested on.

Each property is a function `(rule, updates, ...)` or `(attack, updates, ...)`
that raises an AssertionError if the rule or the attack does not have it on
these updates.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from lca.testing.examples import Example, Setting


class NotApplicable(Exception):
  """A property cannot be tested here, for the reason given."""


@dataclasses.dataclass(frozen=True)
class Property:
  """A property that rules or attacks may have.

  Attributes:
    check: `(subject, updates, **about)`, raises an AssertionError.
    examples: returns the examples to test in a setting.
    promises: the promises of rules, or the knowledge of attacks, that the
      property belongs to; None if all should have it.
    compiled: True if the subject may be compiled for the test. False gives it
      as it is.
    traced: True if the property is one of functions that JAX traces, which a
      function of NumPy arrays is not.
    about: names of the attributes of an `Example` that `check` takes by name.
  """

  check: Callable[..., None]
  examples: Callable[[Setting], Iterable[Example]]
  promises: tuple[str, ...] | None = None
  compiled: bool = True
  traced: bool = False
  about: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """The name of the function."""
    return self.check.__name__

  @property
  def says(self) -> str:
    """The first line of its docstring."""
    return (self.check.__doc__ or '').strip().splitlines()[0].rstrip('.')

  def arguments(self, example: Example) -> dict[str, Any]:
    """Returns what `check` takes by name."""
    return {name: getattr(example, name) for name in self.about}
