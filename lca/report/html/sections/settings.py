"""The sections on a run's config and on the machines that it ran on."""

from collections.abc import Mapping
from typing import Any

from lca.experiment.identity import flat
from lca.report.html.blocks import Details, Section, Table
from lca.report.html.run import Run


def config(run: Run) -> Section:
  """Returns the section of all keys of the config, one table a section."""
  top = {k: v for k, v in run.config.items() if not isinstance(v, Mapping)}
  parts = {'run': top} | {
    name: flat(part)
    for name, part in run.config.items()
    if isinstance(part, Mapping)
  }
  tables = [
    Table(name, ('key', 'value'), [(k, _text(v)) for k, v in part.items()])
    for name, part in parts.items()
    if part
  ]
  count = sum(map(len, parts.values()))
  return Section(
    'Config',
    'Every key that was set, or had its default, as config.json records it.',
    [Details(f'{count} keys', tables)],
  )


def _text(value: Any) -> str:
  """Returns a value of a config as a person would write it."""
  if isinstance(value, list):
    return f'({", ".join(map(str, value))})'
  return str(value)


def environment(run: Run) -> Section | None:
  """Returns the section of the versions, devices and commits."""
  if not run.environments:
    return None
  columns = [_environment(each) for each in run.environments]
  keys = dict.fromkeys(key for column in columns for key in column)
  count = len(columns)
  header = ['', *(f'start {i}' for i in range(1, count + 1))]
  if count == 1:
    header = ['', 'value']
  rows = [[key, *(column.get(key, '') for column in columns)] for key in keys]
  times = 'one environment' if count == 1 else f'{count} environments in turn'
  return Section(
    'Environment',
    f'The run was computed in {times}.',
    [Table('Versions and devices', header, rows)],
  )


def _environment(about: Mapping[str, Any]) -> dict[str, str]:
  """Returns an environment as texts by name."""
  devices = about.get('devices', [])
  return {
    'commit': about.get('commit') or 'outside of a checkout',
    'devices': f'{len(devices)} x {about.get("device_kind", "unknown")}',
    'platform': about.get('platform', ''),
    'python': about.get('python', ''),
    **about.get('packages', {}),
  }
