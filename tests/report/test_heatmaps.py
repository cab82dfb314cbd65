"""Heat maps of runs that were written by hand, and the look of figures."""

import subprocess
import sys

import numpy as np
import processes
import pytest
import sweep_files
from matplotlib import colors
from matplotlib.figure import Figure

from lca.report import heatmaps, pivot, style
from lca.report.requests import Request

REQUEST = Request(
  'data.alpha', 'aggregator.f', 'test_accuracy', panels='aggregator'
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs')
  for rule in ('krum', 'layerwise_cosine_krum'):
    for f in (1, 2, 3):
      for alpha in (0.1, 1.0):
        for seed in (0, 1):
          config = {'aggregator.f': f, 'data.alpha': alpha}
          if rule != 'krum':
            config |= {'aggregator.distance': 'cosine'}
            config |= {'aggregator.scope': 'leaf'}
          sweep_files.write_run(
            workdir,
            f'f{f}-{alpha}/{rule}/{seed}',
            config,
            {
              'test_accuracy': [f / 4 + seed / 100],
              'test_loss': [100.0 * f + seed],
            },
            finished=(rule, f, alpha) != ('krum', 3, 1.0),
          )
  return workdir


@pytest.fixture
def drawn(monkeypatch):
  """Collects the figures that are saved, without painting them."""
  figures = {}
  monkeypatch.setattr(
    style, 'save', lambda figure, output, name: figures.update({name: figure})
  )
  return figures


def draw(workdir, output, request=REQUEST, columns=2):
  return heatmaps.draw(pivot.make(workdir, request), request, output, columns)


def test_numbers_and_files(workdir, tmp_path):
  numbers, notes = draw(workdir, tmp_path)
  assert numbers['aggregator=krum'] == [
    ('data.alpha / aggregator.f', '1', '2', '3'),
    ('0.1', '0.255 ± 0.007', '0.505 ± 0.007', '0.755 ± 0.007'),
    ('1', '0.255 ± 0.007', '0.505 ± 0.007', ''),
  ]
  assert notes == ['Empty cells, which have no finished run: 1 of 12.']
  for suffix in ('png', 'svg', 'pdf', 'md'):
    file = tmp_path / f'{REQUEST.file}.{suffix}'
    assert file.stat().st_size > 100
  text = file.read_text()
  assert '### aggregator=krum\n\n| data.alpha / aggregator.f | 1 |' in text
  assert 'no finished run: 1 of 12' in text


@pytest.mark.parametrize(
  ('panels', 'rows', 'titles'),
  [
    ('aggregator', 'data.alpha', ['krum', 'layerwise_cosine_krum', '']),
    ('data.alpha', 'aggregator', ['data.alpha=0.1', 'data.alpha=1', '']),
  ],
)
def test_titles_name_a_key_unless_its_values_are_names(
  workdir, tmp_path, drawn, panels, rows, titles
):
  request = REQUEST._replace(rows=rows, panels=panels)
  draw(workdir, tmp_path, request)
  (figure,) = drawn.values()
  assert [axes.get_title() for axes in figure.axes] == titles


@pytest.mark.parametrize('columns', [1, 2])
def test_a_map_for_print(workdir, tmp_path, drawn, columns):
  _, notes = draw(workdir, tmp_path, columns=columns)
  (figure,) = drawn.values()
  assert figure.get_figwidth() == {1: 3.5, 2: 7.16}[columns]
  sizes = [
    text.get_fontsize()
    for axes in figure.axes
    for text in axes.findobj(lambda each: hasattr(each, 'get_fontsize'))
    if text.get_text()
  ]
  assert len(sizes) > 12 and min(sizes) >= 7
  *panels, bar = figure.axes
  assert len(panels) == 2
  assert bar.get_ylabel() == 'test accuracy' and bar.get_ylim() == (0, 1)
  assert not any('wider' in note for note in notes)
  # The texts of a cell: the mean, and below it the deviation.
  texts = [text.get_text() for text in panels[0].texts]
  assert texts[:4] == ['0.26', '±0.01', '0.51', '±0.01']
  assert len(texts) == 2 * 5  # the empty cell has none
  (image,) = panels[0].images
  assert np.ma.getmaskarray(image.get_array()).tolist() == [
    [False, False, False],
    [False, False, True],
  ]
  assert panels[0].patch.get_hatch()


def test_texts_that_do_not_fit_are_reported(workdir, tmp_path, drawn):
  request = REQUEST._replace(
    panels=None, best=('aggregator',), columns='name', rows='aggregator.f'
  )
  _, notes = draw(workdir, tmp_path, request, columns=1)
  assert notes[0] == 'Each cell is of, and names, the best aggregator.'
  assert (
    'Texts of 7 pt are wider than their cells: use --columns=2' in notes[-1]
  )


def test_losses_have_a_scale_of_their_own(workdir, tmp_path, drawn):
  draw(workdir, tmp_path, REQUEST._replace(value='test_loss'))
  (figure,) = drawn.values()
  assert figure.axes[-1].get_ylim() == (100.5, 300.5)


def luminance(color):
  """Returns the relative luminance of WCAG 2 in another form: by powers."""
  return (
    0.2126 * color[0] ** 2.2
    + 0.7152 * color[1] ** 2.2
    + (0.0722 * color[2] ** 2.2)
  )


def test_texts_contrast_with_their_cells():
  scores = np.linspace(0, 1, 41)[None]
  axes = Figure().add_subplot()
  image, texts = style.cells(axes, scores, [['x'] * 41], (0, 1))
  for score, text in zip(scores[0], texts, strict=True):
    pair = [
      luminance(colors.to_rgba(color))
      for color in (image.cmap(score), text.get_color())
    ]
    # WCAG's level AA asks for 4.5; no text can do better than 4.58 everywhere.
    assert (max(pair) + 0.05) / (min(pair) + 0.05) > 4.3


def test_lines_differ_in_colour_and_dashes():
  pairs = [tuple(style.line(place).values()) for place in range(28)]
  assert len(set(pairs)) == 28
  assert len({color for color, _ in pairs[:7]}) == 7


def test_a_legend_hides_no_line():
  with style.applied(2):
    figure = Figure(figsize=(7.16, 2.6))
    for place, labels in enumerate((['a', 'b'], ['a', 'c']), start=1):
      axes = figure.add_subplot(1, 2, place)
      for label in labels:
        axes.plot([1, 2], [0, 1], label=label)
    style.place_legends(figure)
    figure.draw_without_rendering()
  for axes in figure.axes:
    assert axes.get_legend().get_window_extent().y1 < axes.bbox.y0
  assert not figure.legends


def test_panels_with_the_same_lines_share_a_legend():
  with style.applied(1):
    figure = Figure()
    for place in (1, 2):
      axes = figure.add_subplot(2, 1, place)
      axes.plot([1, 2], [0, 1], label='a')
    style.place_legends(figure)
    figure.draw_without_rendering()
  (legend,) = figure.legends
  assert legend.get_window_extent().y1 < min(a.bbox.y0 for a in figure.axes)
  assert all(axes.get_legend() is None for axes in figure.axes)


def test_the_commands(workdir, tmp_path):
  arguments = [
    f'--workdir={workdir}',
    f'--output={tmp_path}',
    '--heatmap=x:aggregator.f,y:data.alpha,value:test_accuracy,name:map',
    '--table=rows:data.alpha,columns:aggregator.f,value:test_loss,name:table',
    '--best=aggregator',
    '--columns=1',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'lca.report', *arguments],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (
    '## map\n\ntest_accuracy\n\n| data.alpha / aggregator.f |' in done.stdout
  )
  assert f'wrote {tmp_path}/map.{{png,svg,pdf,md}}' in done.stdout
  assert f'wrote {tmp_path}/table.{{md,csv,tex}}' in done.stdout
  names = [f'map.{suffix}' for suffix in ('md', 'pdf', 'png', 'svg')]
  names += [f'table.{suffix}' for suffix in ('csv', 'md', 'tex')]
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  assert 'fontTools' not in done.stderr and 'subset' not in done.stderr


@pytest.mark.quick
def test_dollar_signs_are_no_mathematics(tmp_path, drawn):
  for alpha in (0.1, 1.0):
    config = {'data.data_dir': '$A/x^{$B', 'data.alpha': alpha}
    sweep_files.write_run(tmp_path, f'g/{alpha}/0', config)
  request = Request('data.data_dir', 'data.alpha', 'test_accuracy', name='x')
  numbers, _ = draw(tmp_path, tmp_path, request)
  assert [row[0] for row in numbers['test_accuracy'][1:]] == ['$A/x^{$B']
  assert drawn['x'].axes[0].get_yticklabels()[0].get_text() == '$A/x^{$B'
