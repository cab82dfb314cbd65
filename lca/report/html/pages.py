"""Writes the page of a run."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from lca.report import frames
from lca.report.html import charts
from lca.report.html import run as runs
from lca.report.html.run import Run
from lca.report.html.sections import SECTIONS


@functools.cache
def _templates() -> jinja2.Environment:
  """Returns the templates, which escape all texts that they are given."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader('lca.report.html'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def write(file: pathlib.Path, template: str, **values: Any) -> None:
  """Writes a page.

  Args:
    file: to write or replace; its folder is made.
    template: the name of the template.
    **values: of the template's variables.
  """
  page = _templates().get_template(template).render(values)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(page, encoding='utf-8')


def write_run(
  directory: pathlib.Path, file: pathlib.Path | None = None
) -> pathlib.Path:
  """Writes the page of a run, finished or not.

  Args:
    directory: of the run.
    file: to write; None stands for `report.html` in the directory.

  Returns:
    The file.

  Raises:
    ValueError: there is no run, or one of its files is damaged.
    OSError: the file cannot be written.
  """
  file = file or directory / 'report.html'
  write_page(runs.read(directory), file)
  return file


def write_page(run: Run, file: pathlib.Path, index: str | None = None) -> None:
  """Writes the page of a run that has been read.

  Args:
    run: as read.
    file: to write.
    index: address of the sweep's page, relative to this one; None if the page
      stands alone.
  """
  with charts.style():
    sections = [section(run) for section in SECTIONS.values()]
  shown = [each for each in sections if each is not None]
  write(
    file,
    'run.html',
    run=run,
    facts=facts(run.config),
    numbers=numbers(run),
    sections=[each for each in shown if each.content],
    absent=[each for each in shown if not each.content],
    index=index,
  )


def facts(config: Mapping[str, Any]) -> dict[str, str]:
  """Returns in a few words what is run, by topic.

  Args:
    config: of the run, as nested dicts.
  """
  aggregator, attack, data, server, model = (
    config.get(section, {})
    for section in ('aggregator', 'attack', 'data', 'server', 'model')
  )
  rule, f = frames.rule_name(aggregator), aggregator.get('f')
  against, present = frames.attack_name(attack), attack.get('num_byzantine')
  clients = data.get('num_clients')
  if attack.get('sampled'):
    against += ' by attackers that are drawn like others'
  elif present is not None:
    of_round = server.get('clients_per_round')
    against += f', {present} of {of_round} clients a round'
  parts = {
    'Rule': [rule, None if f is None else f'f = {f}'],
    'Attack': [against],
    'Data': [
      data.get('name'),
      data.get('partition'),
      f'{clients} clients' if clients else None,
    ],
    'Model': [model.get('name')],
    'Rounds': [config.get('num_rounds')],
    'Seed': [config.get('seed')],
  }
  texts = {
    topic: ', '.join(str(part) for part in of_topic if part is not None)
    for topic, of_topic in parts.items()
  }
  return {topic: text for topic, text in texts.items() if text}


def numbers(run: Run) -> list[tuple[str, str]]:
  """Returns the five numbers of a run's summary, each with its name."""
  return [
    (number(value), name.replace('_', ' '))
    for name, value in (run.summary or {}).items()
  ]


def number(value: float) -> str:
  """Returns a loss or an accuracy with four digits after the point.

  A number of a thousand or more has three digits in all, as in 4.19e+06.
  """
  return f'{value:.4f}' if abs(value) < 1000 else f'{value:.3g}'
