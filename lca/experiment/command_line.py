"""Command lines: values of a config's keys, and flags that commands share."""

import difflib
import functools
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags


def define_list(
  name: str,
  default: Sequence[str],
  help_text: str,
  flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
  """Defines a flag whose values are separated by commas, or given repeatedly.

  Its value is a list of lists, one each time that the flag is given.
  """
  flags.DEFINE_multi(
    flags.ListParser(),
    flags.ListSerializer(','),
    name,
    default,
    f'{help_text} May be repeated.',
    flag_values,
  )


def define_load() -> None:
  """Defines the flag for `extensions.load_files`."""
  flags.DEFINE_multi_string(
    'load',
    [],
    'A Python file that is executed first, for the rules, attacks, models, '
    'data and others that it registers. May be repeated.',
  )


_FLAG = re.compile(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', re.DOTALL)


def override(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
  """Sets keys of a config as `--config.KEY=VALUE` says, in place.

  A value has its key's type. A key that is None, such as a placeholder, may be
  set to None, too.

  Args:
    config: may be locked.
    arguments: of a command line, without the program.

  Returns:
    The other arguments.

  Raises:
    ValueError: there is no such key, or the value is of another type.
  """
  for key in keys_of(arguments):
    check_key(config, key)
  # ml_collections would parse the None of a key that is None as a number, or
  # keep it as a text. These arguments are left out, and with each of them what
  # earlier ones set its key to.
  left: list[str] = []
  for argument in arguments:
    match = _FLAG.fullmatch(argument)
    if match and match[2] == 'None' and _value(config, match[1]) is None:
      left = [each for each in left if keys_of([each]) != [match[1]]]
    else:
      left.append(argument)
  # The parser takes the first argument for the name of the program.
  argv = ['', *left]
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=argv
    )
    return values(argv, known_only=True)[1:]
  except flags.Error as error:
    raise ValueError(str(error).strip().splitlines()[-1]) from None


def _value(config: ConfigDict, key: str) -> Any:
  return functools.reduce(ConfigDict.__getitem__, key.split('.'), config)


def keys_of(arguments: Sequence[str]) -> list[str]:
  """Returns the keys that `--config.KEY=VALUE` among the arguments set."""
  found = map(_FLAG.fullmatch, arguments)
  return [match[1] for match in found if match]


def set_key(config: ConfigDict, key: str, value: str) -> None:
  """Sets one key of a config to a value that is given as text.

  Raises:
    ValueError: there is no such key, or the value is of another type.
  """
  check_key(config, key)
  *path, last = key.split('.')
  section = _value(config, '.'.join(path)) if path else config
  kind = section.get_type(last)
  try:
    override(config, [f'--config.{key}={value}'])
  except ValueError:
    raise ValueError(f'{key} is a {kind.__name__}, got {value!r}') from None


def check_key(config: ConfigDict, key: str) -> None:
  """Checks that a config has a key.

  Raises:
    ValueError: it has not; the message says what is near, and which keys stand
      beside it.
  """
  path: list[str] = []
  section = config
  for part in key.split('.'):
    if not isinstance(section, ConfigDict) or part not in section:
      break
    section = section[part]
    path.append(part)
  else:
    return
  where = '.'.join(path)
  if not isinstance(section, ConfigDict):
    raise ValueError(f'there is no config key {key}: {where} is a value')
  last, known = key.split('.')[-1], flat_keys(config)
  near = [each for each in known if each.split('.')[-1] == last]
  if path:
    names = difflib.get_close_matches(last, list(section), n=1)
    near = [f'{where}.{name}' for name in names] or near
    beside = f'the chosen presets give {where} the keys'
  else:
    near = difflib.get_close_matches(key, known, n=1) or near
    beside = 'there are'
  hint = f'; did you mean {" or ".join(near)}?' if near else ';'
  raise ValueError(
    f'there is no config key {key}{hint} {beside}: {", ".join(sorted(section))}'
  )


def flat_keys(config: ConfigDict) -> list[str]:
  """Returns the keys of all sections, such as `'data.name'`."""
  keys = []
  for name, value in config.items():
    inner = flat_keys(value) if isinstance(value, ConfigDict) else []
    keys += [f'{name}.{key}' for key in inner] or [name]
  return keys
