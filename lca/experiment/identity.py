"""Which configs describe the same run, and the id of a run.

Two configs are of the same run if they compute the same thing. Keys that only
say where and how a run is computed do not count.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

# Sections and keys that do not count: they say where and how a run is computed
# and when it ends, not what it computes (beyond rounding). They may differ when
# a run is continued.
_NOT_COMPARED = (
  'parallel',
  'checkpoint',
  'data.archive_dir',
  'data.data_dir',
  'eval.batch_size',
  'train.on_nonfinite',
)

# Options added after results were published. A config without one means the
# value here, so that old runs keep their id.
_ADDED_LATER = {
  'client.dtype': 'float32',
  'client.update_dtype': 'float32',
  'client.drop_rate': 0.0,
  'aggregator.ties': 'mean',
  'aggregator.farthest': 'remaining',
  'aggregator.init': 'last',
  'attack.changes': 'mean',
  'model.initial_weights': 'lecun_normal',
}


def run_id(config: Mapping[str, Any]) -> str:
  """Returns the id of a run: 16 hexadecimal digits.

  Args:
    config: of the run, as nested dicts. Keys that do not count are left out, as
      are options added later that have the value which a config without them
      means.
  """
  counted = {
    key: value
    for key, value in _flat_as_before(config).items()
    if _is_compared(key) and (key, value) not in _ADDED_LATER.items()
  }
  text = json.dumps(counted, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_run(
  path: str | os.PathLike, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Refuses a config that would compute something else.

  Args:
    path: of what the old config made.
    old: config, as nested dicts that were read from JSON.
    new: likewise.

  Raises:
    ValueError: a key differs that counts; it is named with both values. The
      number of rounds may grow.
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
    configs: of each run, by its directory, as nested dicts that were read from
      JSON.

  Raises:
    ValueError: a key differs that counts; it is named with two directories.
  """
  (first, config), *others = configs.items()
  for path, other in others:
    for key, one, two in _differences(config, other):
      if key != 'seed':
        raise ValueError(
          f'{line}: {key} is {one!r} in {first} and {two!r} in {path}, but its '
          'runs are to differ in nothing but their seeds; choose a --workdir '
          'for each'
        )


def _differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """Yields the keys that count and differ, with both values."""
  old, new = (_ADDED_LATER | _flat_as_before(each) for each in (old, new))
  for key in sorted(old.keys() | new.keys()):
    before, now = old.get(key, '(none)'), new.get(key, '(none)')
    if before != now and _is_compared(key):
      yield key, before, now


def _is_compared(key: str) -> bool:
  return not any(
    key == each or key.startswith(f'{each}.') for each in _NOT_COMPARED
  )


def _flat_as_before(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config's values by dotted key, as configs of old would have them.

  The options of a pre-aggregator stood among the rule's before they had a
  section of their own, such as `aggregator.nnm.f`. There a name had one value:
  those that differ from it keep their section.
  """
  flat = _flat(config)
  for name in flat.get('aggregator.pre') or ():
    prefix = f'aggregator.{name}.'
    for key in [key for key in flat if key.startswith(prefix)]:
      shared = f'aggregator.{key.removeprefix(prefix)}'
      if flat.get(shared, flat[key]) == flat[key]:
        flat[shared] = flat.pop(key)
  return flat


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat
