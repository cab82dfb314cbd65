"""What an attack's options may be; a config's flags may give them as text."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from jax.core import Tracer

Check = Callable[[str, Any], Any]
"""`(name, value) -> value`, converted; raises a ValueError naming both."""


def number(low: float = -math.inf, high: float = math.inf) -> Check:
  """A finite number in `[low, high]`; of a traced one nothing is asked."""

  def check(name, value):
    if isinstance(value, Tracer):
      return value
    try:
      found = float(value)
    except (TypeError, ValueError):
      raise ValueError(f'{name} must be a number, got {value!r}') from None
    if not (math.isfinite(found) and low <= found <= high):
      raise ValueError(
        f'{name} must be a finite number in [{low}, {high}], got {found}'
      )
    return found

  return check


def positive(name: str, value: Any) -> Any:
  """A finite number above 0; of a traced one nothing is asked."""
  found = number()(name, value)
  if not isinstance(found, Tracer) and found <= 0:
    raise ValueError(f'{name} must be above 0, got {found}')
  return found


def whole(low: int) -> Check:
  """An integer of at least `low`."""

  def check(name, value):
    try:
      found = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
      raise ValueError(f'{name} must be an integer, got {value!r}') from None
    if found < low:
      raise ValueError(f'{name} must be at least {low}, got {found}')
    return found

  return check


def one_of(*names: str) -> Check:
  """One of these words."""

  def check(name, value):
    if value not in names:
      raise ValueError(f'{name} must be one of {list(names)}, got {value!r}')
    return value

  return check


def pattern(name: str, value: Any) -> str:
  """A regular expression."""
  try:
    re.compile(value)
  except (TypeError, re.error) as error:
    raise ValueError(
      f'{name} must be a regular expression, got {value!r}: {error}'
    ) from None
  return value
