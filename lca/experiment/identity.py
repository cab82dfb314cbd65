"""The identity of a run: its id, and the checks that two configs are the same.

Two configs describe the same run if they compute the same results. Keys that
only say where and how a run is computed are not compared.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lca.attacks import Training

# Sections and keys that are not compared. They say where and how a run is
# computed and when it ends, and change its results by rounding at most. So they
# may differ when a run is continued.
_NOT_COMPARED = (
  'parallel',
  'checkpoint.every',
  'checkpoint.keep',
  'checkpoint.model',
  'data.archive_dir',
  'data.data_dir',
  'eval.batch_size',
  'train.on_nonfinite',
)

# Options that were added after results were published. A config without one of
# them means the value given here, so that older runs keep their id.
_IMPLIED_VALUES = {
  'client.dtype': 'float32',
  'client.update_dtype': 'float32',
  'client.drop_rate': 0.0,
  'eval.forensics': False,
  'eval.detection': False,
  'eval.by_class': False,
  'aggregator.ties': 'mean',
  'aggregator.farthest': 'remaining',
  'aggregator.init': 'last',
  'aggregator.sigma': 0.0,
  'init_from': '',
  'attack.changes': 'mean',
  'attack.first_round': 1,
  'attack.last_round': None,
  'attack.every': 1,
  'attack.rounds': None,
  'attack.knowledge': 'all',
  **{
    f'attack.training.{field.name}': field.default
    for field in dataclasses.fields(Training)
  },
  'model.initial_weights': 'lecun_normal',
  'data.validation': 0.0,
  'data.redraw_below': 0,
  'checkpoint.best': '',
}


def run_id(config: Mapping[str, Any]) -> str:
  """Returns the id of a run: 16 hexadecimal digits.

  The id is a hash of the keys that are compared. A newer option leaves the id
  as it is as long as it has the value that older configs imply.

  Args:
    config: of the run, as nested dicts.
  """
  compared = {
    key: value
    for key, value in _flat_as_before(config).items()
    if _is_compared(key) and (key, value) not in _IMPLIED_VALUES.items()
  }
  text = json.dumps(compared, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_run(
  path: str | os.PathLike, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Refuses to continue a run with a config that computes something else.

  Args:
    path: of the run or checkpoint that was made with the old config.
    old: the old config, as nested dicts that were read from JSON.
    new: the new config, in the same form.

  Raises:
    ValueError: a key that is compared differs; the message names it with both
      values. Only `num_rounds` may differ, if it grows.
  """
  for key, before, now in _differences(old, new):
    if not (key == 'num_rounds' and now >= before):
      raise ValueError(
        f'{path} holds the run of another config: {key} was {before!r} '
        f'there and is {now!r} now; choose another --workdir'
      )


def check_same_line(
  line: str, configs: Mapping[str | os.PathLike, Mapping[str, Any]]
) -> None:
  """Refuses runs whose configs differ in more than the seed.

  Args:
    line: the name that these runs share.
    configs: the config of each run by its directory, as nested dicts that were
      read from JSON.

  Raises:
    ValueError: a key that is compared differs; the message names it with both
      values and directories.
  """
  (first, config), *others = configs.items()
  for path, other in others:
    for key, one, two in _differences(config, other):
      if key != 'seed':
        raise ValueError(
          f'{line}: {key} is {one!r} in {first} and {two!r} in {path}, but '
          'runs of one name may differ in their seeds only; choose another '
          '--workdir'
        )


def _differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """Yields each key that is compared and differs, with both values."""
  old, new = compared_values(old), compared_values(new)
  for key in sorted(old.keys() | new.keys()):
    before, now = old.get(key, '(none)'), new.get(key, '(none)')
    if before != now:
      yield key, before, now


def compared_values(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values of the keys that decide a run's results, by dotted key.

  A key that the config lacks, because it is older than the option, has the
  value that the config implies.

  Args:
    config: of a run, as nested dicts that were read from JSON.
  """
  values = _IMPLIED_VALUES | _flat_as_before(config)
  return {key: value for key, value in values.items() if _is_compared(key)}


def all_values(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all values of a config by dotted key, such as 'data.name'.

  An option of a pre-aggregator, such as `aggregator.nnm.f`, is also there as
  an option of the rule, `aggregator.f`, unless the rule has another value for
  it.

  Args:
    config: of a run, as nested dicts that were read from JSON.
  """
  return _flat_as_before(config) | flat(config)


def _is_compared(key: str) -> bool:
  """Returns True unless the key or its section is in `_NOT_COMPARED`."""
  return not any(
    key == each or key.startswith(f'{each}.') for each in _NOT_COMPARED
  )


def _flat_as_before(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config's values by dotted key, in the layout of older configs.

  The options of a pre-aggregator now stand in a section of their own, such as
  `aggregator.nnm.f`. In older configs they stood among the rule's options, as
  an `aggregator.f` that both shared. This function moves an option back to the
  rule's options, unless the rule has another value for an option of this name.
  """
  values = flat(config)
  for name in values.get('aggregator.pre') or ():
    prefix = f'aggregator.{name}.'
    for key in [key for key in values if key.startswith(prefix)]:
      shared = f'aggregator.{key.removeprefix(prefix)}'
      if values.get(shared, values[key]) == values[key]:
        values[shared] = values.pop(key)
  return values


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of nested dicts by dotted key, such as 'data.name'."""
  values = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      values |= flat(value, f'{prefix}{key}.')
    else:
      values[prefix + key] = value
  return values
