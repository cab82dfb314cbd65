"""Tests of the figures of partitions."""

import sys

import numpy as np
import pytest
from labelled import CLIENTS, HISTOGRAM, LABELS, make_labelled, make_split

from lca.data import Dataset, FederatedDataset, plot_partition


@pytest.fixture
def no_pyplot(monkeypatch):
  """Makes importing pyplot an error."""
  monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)


@pytest.mark.usefixtures('no_pyplot')
@pytest.mark.parametrize(
  ('suffix', 'start'), [('.png', b'\x89PNG\r\n'), ('.svg', b'<?xml')]
)
@pytest.mark.parametrize('repeats', [1, 26], ids=['4 clients', '104 clients'])
def test_plot_writes_a_file(tmp_path, suffix, start, repeats):
  path = tmp_path / f'clients{suffix}'
  plot_partition(make_labelled(LABELS, CLIENTS * repeats), path)
  assert path.read_bytes().startswith(start)
  assert path.stat().st_size > 1000


def test_plot_stacks_each_clients_classes():
  clients = make_labelled(LABELS, CLIENTS)
  figure = plot_partition(clients)
  (axes,) = figure.axes
  heights = np.zeros([4, 3])
  tops = np.zeros(4)
  assert len(axes.containers) == 3
  for label, bars in enumerate(axes.containers):
    for bar in bars:
      client = round(bar.get_x() + bar.get_width() / 2)
      assert bar.get_y() == tops[client]
      heights[client, label] = bar.get_height()
      tops[client] += bar.get_height()
  np.testing.assert_array_equal(heights, HISTOGRAM)
  assert axes.get_title(loc='left') == clients.describe()
  (legend,) = figure.legends
  names = {text.get_text() for text in legend.get_texts()}
  assert names == {'0', '1', '2'}


def test_plot_draws_many_clients_as_a_heat_map():
  figure = plot_partition(make_labelled(LABELS, CLIENTS * 26))
  image = figure.axes[0].images[0]
  np.testing.assert_array_equal(
    image.get_array(), np.tile(HISTOGRAM, [26, 1]).T
  )
  assert figure.axes[0].get_ylabel() == 'class'


def test_plot_draws_many_classes_as_a_heat_map():
  train = make_split(21)
  many = Dataset('toy', train, make_split(2), 21, (1.0,), (1.0,))
  figure = plot_partition(FederatedDataset(many, [np.arange(21)]))
  np.testing.assert_array_equal(
    figure.axes[0].images[0].get_array(), np.ones([21, 1])
  )


def test_plot_names_the_formats_that_it_knows(tmp_path):
  with pytest.raises(ValueError, match=r'abc.*png'):
    plot_partition(make_labelled(LABELS, CLIENTS), tmp_path / 'clients.abc')
