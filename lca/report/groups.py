"""Groups runs by the values of keys, and checks that only seeds differ."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lca.experiment import identity
from lca.report.frames import Run


def show(value: Any) -> str:
  """Returns a config's value as text.

  Equal numbers have the same text. A list's entries are joined by `+`. None,
  and a key that a run does not have, are `None`.
  """
  if isinstance(value, list | tuple):
    return '+'.join(map(show, value)) or 'none'
  if isinstance(value, float):
    return f'{value:.12g}'
  return str(value)


def order(text: str) -> tuple[bool, bool, float, str]:
  """Returns a key that sorts None and none first, and numbers before words."""
  try:
    number = float(text)
  except ValueError:
    return text.lower() != 'none', True, 0.0, text
  return True, False, number, text


Group = tuple[str, ...]
"""The values of some keys, as texts."""


def group(runs: Iterable[Run], keys: Sequence[str]) -> dict[Group, list[Run]]:
  """Groups runs by their values of some keys; the groups are sorted."""
  groups: dict[Group, list[Run]] = {}
  for run in runs:
    values = tuple(show(run.about.get(key)) for key in keys)
    groups.setdefault(values, []).append(run)
  return dict(
    sorted(groups.items(), key=lambda item: [order(text) for text in item[0]])
  )


def check_seeds(runs: Sequence[Run], keys: Sequence[str], remedy: str) -> None:
  """Refuses a mean over runs that differ in more than their seeds.

  Args:
    runs: at least one; all have the same values of `keys`.
    keys: the keys by which the runs were grouped.
    remedy: the end of the error message, on how to tell such runs apart.

  Raises:
    ValueError: another key differs, or two runs have the same seed.
  """
  first = runs[0]
  where = ', '.join(f'{key}={show(first.about.get(key))}' for key in keys)
  if differing := _differing(runs):
    raise ValueError(
      f'the runs with {where} differ in {", ".join(differing)}: {remedy}'
    )
  seeds: dict[Any, Run] = {}
  for run in runs:
    other = seeds.setdefault(run.about.get('seed'), run)
    if other is not run:
      raise ValueError(
        f'the runs {other.about["name"]} and {run.about["name"]} are the same '
        f'run with the same seed, {run.about.get("seed")}: take one of the '
        'directories away'
      )


def _differing(runs: Sequence[Run]) -> list[str]:
  """Returns the keys in which runs differ, each with its first values.

  Runs of different rules differ in many keys, of which `aggregator` stands for
  all. The same holds for `attack`.
  """
  values: dict[str, dict[str, str]] = {}
  configs = [identity.compared_values(run.config) for run in runs]
  for key in sorted(set().union(*configs) - {'seed'}):
    of_key = {json.dumps(c.get(key)): show(c.get(key)) for c in configs}
    if len(of_key) > 1:
      values[key] = of_key
  for section in ('aggregator', 'attack'):
    names = {str(run.about[section]) for run in runs}
    if len(names) > 1:
      values = {
        key: texts
        for key, texts in values.items()
        if not key.startswith(f'{section}.')
      }
      values[section] = {name: name for name in sorted(names)}
  return [
    f'{key} ({", ".join([*texts.values()][:4])}{", ..." * (len(texts) > 4)})'
    for key, texts in values.items()
  ]
