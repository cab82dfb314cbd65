"""Checks of the values of options, such as those of attacks and models.

A flag on the command line gives a value as text. The checks of numbers
therefore convert text, too.
"""

import math
import operator
import re
import weakref
from collections.abc import Callable
from typing import Any

from jax.core import Tracer

Check = Callable[[str, Any], Any]
"""`check(name, value)` returns the value, converted.

The check raises a ValueError with the name and the value if the value is not
allowed.
"""


def number(low: float = -math.inf, high: float = math.inf) -> Check:
  """Returns a check for a finite number in `[low, high]`.

  The check returns a float. A traced value passes unchecked, because its number
  is not known while JAX traces.
  """

  def check(name, value):
    if isinstance(value, Tracer):
      return value
    try:
      converted = float(value)
    except (TypeError, ValueError):
      raise ValueError(f'{name} must be a number, got {value!r}') from None
    if not (math.isfinite(converted) and low <= converted <= high):
      raise ValueError(
        f'{name} must be a finite number in [{low}, {high}], got {converted}'
      )
    return converted

  _OF_NUMBERS.add(check)
  return check


_OF_NUMBERS: weakref.WeakSet[Check] = weakref.WeakSet()
"""The checks that let traced values pass."""


def may_be_traced(check: Check | None) -> bool:
  """Returns True if a check lets a value pass that JAX traces."""
  return check in _OF_NUMBERS


def positive(name: str, value: Any) -> Any:
  """Checks that a value is a finite number above 0; traced values pass."""
  converted = number()(name, value)
  if not isinstance(converted, Tracer) and converted <= 0:
    raise ValueError(f'{name} must be above 0, got {converted}')
  return converted


_OF_NUMBERS.add(positive)


def whole(low: int) -> Check:
  """Returns a check for an integer of at least `low`."""

  def check(name, value):
    # `operator.index` refuses floats, which `int` would round down.
    try:
      integer = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
      raise ValueError(f'{name} must be an integer, got {value!r}') from None
    if integer < low:
      raise ValueError(f'{name} must be at least {low}, got {integer}')
    return integer

  return check


def one_of(*names: str) -> Check:
  """Returns a check that a value is one of `names`."""

  def check(name, value):
    if value not in names:
      raise ValueError(f'{name} must be one of {list(names)}, got {value!r}')
    return value

  return check


def pattern(name: str, value: Any) -> str:
  """Checks that a value is a regular expression that Python compiles."""
  try:
    re.compile(value)
  except (TypeError, re.error) as error:
    raise ValueError(
      f'{name} must be a regular expression, got {value!r}: {error}'
    ) from None
  return value
