"""Command lines: setting a config's keys, and flags that commands share."""

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
  """Defines a flag that takes a list, separated by commas, any number of times.

  The flag's value is a list of lists, one list for each time it is given.

  Args:
    name: of the flag.
    default: the list if the flag is not given.
    help_text: for --help.
    flag_values: the flags to which the new flag is added.
  """
  flags.DEFINE_multi(
    flags.ListParser(),
    flags.ListSerializer(','),
    name,
    default,
    f'{help_text} May be repeated.',
    flag_values,
  )


def define_load(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flag --load, whose files `extensions.load_files` executes.

  Args:
    flag_values: the flags to which the new flag is added.
  """
  flags.DEFINE_multi_string(
    'load',
    [],
    'A Python file that is executed first, so that the rules, attacks, models '
    'and data that it registers are known. May be repeated.',
    flag_values=flag_values,
  )


def define_cache(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flag --no-compilation-cache, see `compilation.keep_programs`.

  Args:
    flag_values: the flags to which the new flag is added.
  """
  flags.DEFINE_bool(
    'no-compilation-cache',
    False,
    "Compiles everything anew, and keeps nothing. Otherwise the user's cache "
    'directory keeps compiled programs for later processes.',
    flag_values=flag_values,
  )


_FLAG = re.compile(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', re.DOTALL)


def override(config: ConfigDict, arguments: Sequence[str]) -> list[str]:
  """Sets keys of a config, in place, as arguments `--config.KEY=VALUE` say.

  A value is parsed as its key's type. If the same key is given twice, the last
  value counts. A key that is None may also be set to None.

  Args:
    config: may be locked.
    arguments: of a command line, without the program.

  Returns:
    The arguments that set no key.

  Raises:
    ValueError: there is no such key, or the value is of another type.
  """
  for key in keys_of(arguments):
    check_key(config, key)
  # `--config.KEY=None` for a key that is None: ml_collections would read 'None'
  # as a number of the key's type, and fail, or keep it as text. Leaving the
  # argument out keeps the None, provided that earlier arguments for the same
  # key are left out, too.
  to_parse: list[str] = []
  for argument in arguments:
    match = _FLAG.fullmatch(argument)
    if match and match[2] == 'None' and value_of(config, match[1]) is None:
      to_parse = [each for each in to_parse if keys_of([each]) != [match[1]]]
    else:
      to_parse.append(argument)
  # The parser takes the first argument for the name of the program.
  argv = ['', *to_parse]
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=argv
    )
    return values(argv, known_only=True)[1:]
  except flags.Error as error:
    raise ValueError(str(error).strip().splitlines()[-1]) from None


def value_of(config: ConfigDict, key: str) -> Any:
  """Returns the value of a key such as 'data.name'."""
  return functools.reduce(ConfigDict.__getitem__, key.split('.'), config)


def keys_of(arguments: Sequence[str]) -> list[str]:
  """Returns the keys that arguments of the form `--config.KEY=VALUE` set."""
  matches = map(_FLAG.fullmatch, arguments)
  return [match[1] for match in matches if match]


def set_key(config: ConfigDict, key: str, value: str) -> None:
  """Sets one key of a config to a value that is given as text.

  Args:
    config: is changed in place; may be locked.
    key: such as `'client.batch_size'`.
    value: is parsed as the key's type.

  Raises:
    ValueError: there is no such key, or the value is of another type.
  """
  check_key(config, key)
  *path, last = key.split('.')
  section = value_of(config, '.'.join(path)) if path else config
  kind = section.get_type(last)
  try:
    override(config, [f'--config.{key}={value}'])
  except ValueError:
    raise ValueError(
      f'{key} must be of type {kind.__name__}, got {value!r}'
    ) from None


def check_key(config: ConfigDict, key: str) -> None:
  """Checks that a config has a key, such as `'client.batch_size'`.

  Raises:
    ValueError: there is no such key; the message names the nearest one and the
      keys of the same section.
  """
  # Walk down to the first part of the key that does not exist.
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
    raise ValueError(
      f'there is no config key {key}: {where} is a value, not a section'
    )
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
  """Returns all keys of a config with their sections, such as `'data.name'`.

  A section without keys is listed by its own name.
  """
  keys = []
  for name, value in config.items():
    inner = flat_keys(value) if isinstance(value, ConfigDict) else []
    keys += [f'{name}.{key}' for key in inner] or [name]
  return keys
