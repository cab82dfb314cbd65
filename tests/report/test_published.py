"""The published figures and tables come out of the recorded runs.

`benchmarks/results` holds each sweep as a packed file. The numbers of its
figures, and its tables, lie beside it as Markdown, and are compared byte for
byte.
"""

import pathlib

import numpy as np
import pytest

from lca.experiment import packing
from lca.report import figures, formats, heatmaps, pivot, runs, tables
from lca.report.requests import Request

RESULTS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'results'
SCALES = {'tables': 'reduced/'}  # of the runs' names; others have none


def figures_of(sweep):
  files = sorted((RESULTS / sweep / 'figures').glob('*.md'))
  assert files
  return [(sweep, file.stem) for file in files]


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
  """A folder with the workdir of each recorded sweep."""
  folder = tmp_path_factory.mktemp('recorded')
  for file in RESULTS.glob('*.zip'):
    packing.unpack(file, folder / file.stem)
  return folder


def test_every_figure_has_its_picture():
  pictures = {path.with_suffix('') for path in RESULTS.glob('*/figures/*.png')}
  numbers = {path.with_suffix('') for path in RESULTS.glob('*/figures/*.md')}
  assert pictures == numbers and len(numbers) == 20


@pytest.mark.parametrize(
  ('sweep', 'figure'),
  [
    *figures_of('attacks'),
    *figures_of('forensics'),
    *figures_of('legato'),
    *figures_of('tables'),
  ],
)
def test_numbers_of_figures(sweep, figure, unpacked, tmp_path, monkeypatch):
  # Painting takes most of the time, and changes no number.
  monkeypatch.setattr(figures.Figure, 'savefig', lambda *_, **__: None)
  prefix = '' if figure == 'lca_1' else SCALES.get(sweep, '')
  figures.draw(figure, unpacked / sweep, tmp_path, prefix)
  published = RESULTS / sweep / 'figures' / f'{figure}.md'
  assert (tmp_path / f'{figure}.md').read_text() == published.read_text()


@pytest.mark.parametrize(
  ('sweep', 'figure'),
  [('attacks', 'attacks'), ('legato', 'legato_4'), ('tables', 'lca_3')],
)
def test_a_figure_is_drawn_from_the_packed_file(sweep, figure, tmp_path):
  prefix = SCALES.get(sweep, '')
  figures.draw(figure, RESULTS / f'{sweep}.zip', tmp_path, prefix)
  published = RESULTS / sweep / 'figures' / f'{figure}.md'
  assert (tmp_path / f'{figure}.md').read_text() == published.read_text()
  assert (tmp_path / f'{figure}.png').stat().st_size > 10_000


def test_tables_from_the_packed_file():
  made = tables.make(RESULTS / 'tables.zip', 'reduced/')
  texts = {f'{table.name}.md': formats.to_markdown(table) for table in made}
  published = {
    path.name: path.read_text()
    for path in (RESULTS / 'tables' / 'tables').iterdir()
  }
  assert texts == published


def test_a_heat_map_by_config_keys_has_the_published_numbers():
  request = Request('attack', 'aggregator', 'test_accuracy')
  (grid,) = pivot.make(RESULTS / 'attacks.zip', request).panels.values()
  cells = {
    (attack, rule): f'{cell.number(1).mean:.3f}'
    for attack, row in zip(grid.rows, grid.cells, strict=True)
    for rule, cell in zip(grid.columns, row, strict=True)
  }
  text = (RESULTS / 'attacks' / 'figures' / 'attacks.md').read_text()
  table = [
    [entry.strip() for entry in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|')
  ]
  (_, *rules), _, *rows = table
  assert cells == {
    (attack, rule.replace(',', '+')): number
    for attack, *numbers in rows
    for rule, number in zip(rules, numbers, strict=True)
  }
  assert len(cells) == 176


@pytest.mark.parametrize(
  ('name', 'value', 'attacks'),
  [
    ('accuracy', 'test_accuracy', ()),
    (
      'success',
      'attack_success_rate',
      (
        *('a3fl', 'badnets', 'badnets_replacement'),
        *('constrain_and_scale+badnets', 'dba', 'edge_case', 'flip_source'),
        *('neurotoxin+badnets', 'pgd+edge_case'),
      ),
    ),
  ],
)
def test_heat_maps_of_backdoors(
  name, value, attacks, unpacked, tmp_path, monkeypatch
):
  monkeypatch.setattr(figures.Figure, 'savefig', lambda *_, **__: None)
  where = {'attack': attacks} if attacks else {}
  request = Request(
    'aggregator', 'attack', value, 'data.alpha', where=where, name=name
  )
  filled = pivot.make(unpacked / 'backdoors', request)
  heatmaps.draw(filled, request, tmp_path, 2)
  published = RESULTS / 'backdoors' / 'figures' / f'{name}.md'
  assert (tmp_path / f'{name}.md').read_text() == published.read_text()


def test_accuracies_of_the_fashion_mnist_check():
  lines = runs.read_lines(
    RESULTS / 'fashion_mnist_check.zip', 'fashion_mnist_check'
  )
  text = (RESULTS / 'README.md').read_text()
  for line, (run,) in lines.items():
    rule, _, attack = line.partition(',')
    start = f'| {rule} | {attack or "none"} | '
    (row,) = (each for each in text.splitlines() if each.startswith(start))
    printed = [float(cell) for cell in row.removeprefix(start)[:-1].split('|')]
    np.testing.assert_array_equal(run['round'], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(printed, run['test_accuracy'], atol=0.00051)
  assert len(lines) == 3
