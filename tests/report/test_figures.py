"""Figures and their numbers, from runs made by hand."""

import json
import subprocess
import sys

import numpy as np
import processes
import pytest

from lca.experiment import sweep
from lca.report import figures

LAYERS = ['params/Conv_0/bias', 'params/Dense_0/kernel']


def write_run(workdir, name, columns, num_rounds=1):
  names_file = workdir / 'sweep.json'
  names = json.loads(names_file.read_text()) if names_file.exists() else {}
  place = f'{len(names):016x}'
  names_file.write_text(json.dumps(names | {name: place}))
  run = workdir / place
  run.mkdir()
  lines = [','.join(columns)]
  lines += [
    ','.join(map(str, row)) for row in zip(*columns.values(), strict=True)
  ]
  (run / 'metrics.csv').write_text('\n'.join(lines) + '\n')
  (run / 'summary.json').write_text('{}')
  seed = int(name.rpartition('/')[2])
  config = {'seed': seed, 'num_rounds': num_rounds, 'parallel': {'mesh': seed}}
  about = {'config': config, 'environments': []}
  (run / 'config.json').write_text(json.dumps(about))


def write_accuracies(workdir, group):
  rounds = list(range(1, 21))
  for line, top in (('krum', 0.2), ('window=10', 0.6), ('window=5', 0.5)):
    for seed, shift in enumerate((-0.1, 0.1)):
      accuracies = [top * r / 20 + shift if r % 2 == 0 else '' for r in rounds]
      columns = {'round': rounds, 'test_accuracy': accuracies}
      write_run(workdir, f'{group}/{line}/{seed}', columns)


@pytest.mark.quick
def test_accuracies_by_line_over_seeds(tmp_path):
  write_accuracies(tmp_path, 'fig5')
  tables = figures.draw('legato_5', tmp_path, tmp_path / 'figures')
  (table,) = tables.values()
  names = [row[0] for row in table[1:]]
  assert names == ['krum', 'window=5', 'window=10']
  # At 20 rounds, krum ends at 0.2 -+ 0.1, and the 10 evaluations, of rounds
  # 2, 4, ..., 20, average 0.2 * 11 / 20 -+ 0.1.
  assert table[1][1] == '0.200 (0.100 to 0.300)'
  assert table[1][2] == '0.110 (0.010 to 0.210)'
  for suffix in ('png', 'svg', 'pdf', 'md'):
    assert (tmp_path / 'figures' / f'legato_5.{suffix}').stat().st_size > 100


def test_one_seed_has_no_range(tmp_path):
  columns = {'round': [1, 2], 'test_accuracy': [0.5, 0.75]}
  write_run(tmp_path, 'fig5/krum/0', columns)
  ((_, row),) = figures.draw('legato_5', tmp_path, tmp_path).values()
  assert row == ('krum', '0.750', '0.625', '0.750')


def test_factors_of_rounds_20_to_80(tmp_path):
  rounds = np.arange(1, 101)
  inside = (rounds >= 20) & (rounds <= 80)
  wave = np.where(rounds % 2, 0.1, -0.1)
  columns = {
    'round': rounds,
    'factor/params/a': np.where(inside, 0.25, 9),
    'factor/params/b': np.where(inside, 0.5 + wave, 9),
  }
  for group in ('fig8_none', 'fig8_sigma20'):
    write_run(tmp_path, f'{group}/legato/0', columns)
  table, _ = figures.draw('legato_8', tmp_path, tmp_path).values()
  assert table[1] == ('a', '0.2500', '0')
  layer, mean, variance = table[2]
  values = columns['factor/params/b'][inside]
  assert layer == 'b' and len(values) == 61
  assert mean == f'{values.mean():.4f}'
  assert float(variance) == pytest.approx(values.var(), rel=0.05)


def test_the_pilots_norms(tmp_path):
  columns = {'round': [1, 2, 3]}
  columns |= {f'norm/{k}': [1.0, 2.0, 3.0] for k in LAYERS}
  for group in ('fig4_none', 'fig4_sigma200'):
    write_run(tmp_path, f'{group}/fedavg/0', columns)
  table, _ = figures.draw('legato_4', tmp_path, tmp_path).values()
  assert table[1] == (LAYERS[0], '2.0000', f'{np.std([1, 2, 3]):.4f}')


def test_attacks_by_rules(tmp_path):
  for line, accuracy in (
    ('alie x b', 0.5),
    ('none x a', 0.9),
    ('none x b', 0.8),
  ):
    for seed, shift in enumerate((-0.05, 0.05)):
      accuracies = [0.1, accuracy + shift]
      columns = {'round': [1, 2], 'test_accuracy': accuracies}
      write_run(tmp_path, f'attacks/{line}/{seed}', columns)
  ((header, *rows),) = figures.draw('attacks', tmp_path, tmp_path).values()
  assert header == ('', 'b', 'a')
  assert rows == [('none', '0.800', '0.900'), ('alie', '0.500', 'nan')]


def test_an_unknown_figure_is_told_what_is_near(tmp_path):
  said = r"unknown figure 'legato_55'; did you mean 'legato_5'\? there are: att"
  with pytest.raises(ValueError, match=said):
    figures.draw('legato_55', tmp_path, tmp_path)


def test_a_loaded_file_adds_a_figure(tmp_path):
  write_accuracies(tmp_path, 'mine')
  file = tmp_path / 'my_figures.py'
  file.write_text(
    'from lca.report.figures import FIGURES, Spec, accuracy\n'
    "FIGURES.register(Spec({'my rules': 'mine'}, accuracy), name='my_figure')\n"
  )
  flags = [f'--load={file}', '--figure=my_figure', f'--workdir={tmp_path}']
  done = subprocess.run(
    [sys.executable, '-m', 'lca.report', *flags],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('## my_figure\n\nmy rules\n\n|  | final |')
  assert (tmp_path / 'figures' / 'my_figure.svg').is_file()


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'no runs fig5/'):
    figures.draw('legato_5', tmp_path, tmp_path)
  write_run(tmp_path, 'fig5/krum/0', {'round': [1], 'test_accuracy': [0.5]})
  (tmp_path / f'{0:016x}' / 'summary.json').unlink()
  with pytest.raises(ValueError, match='not finished'):
    figures.draw('legato_5', tmp_path, tmp_path)


def test_two_configs_are_no_line(tmp_path):
  columns = {'round': [1, 2], 'test_loss': [1, 1], 'test_accuracy': [0.5, 0.75]}
  for group in ('fig5', 'table2/emnist'):
    for seed in (0, 1):
      write_run(tmp_path, f'{group}/plain/{seed}', columns, num_rounds=5 + seed)
  message = r'num_rounds is 5 in \S+ and 6 in \S+, but'
  with pytest.raises(ValueError, match=f'fig5/plain: {message}'):
    figures.draw('legato_5', tmp_path, tmp_path)
  with pytest.raises(ValueError, match=f'emnist/plain: {message}'):
    figures.draw('lca_4', tmp_path, tmp_path)
  (tmp_path / f'{3:016x}' / 'summary.json').unlink()
  figures.draw('lca_4', tmp_path, tmp_path)


def test_test_losses_of_the_variants(tmp_path):
  group = 'table2/emnist'
  for variant, rise in (('plain', 0.1), ('layerwise_cosine', -0.1)):
    for seed, shift in enumerate((-0.5, 0.5)):
      losses = [3 + shift + rise * r for r in range(1, 13)]
      columns = {'round': range(1, 13), 'test_loss': losses}
      columns |= {'test_accuracy': [0.5] * 12}
      write_run(tmp_path, f'{group}/{variant}/{seed}', columns)
  write_run(tmp_path, f'{group}/cosine/0', columns)
  (tmp_path / f'{4:016x}' / 'summary.json').unlink()  # not finished
  write_run(tmp_path, 'table2/cifar10/plain/0', columns)
  tables = figures.draw('lca_4', tmp_path, tmp_path / 'figures')
  # Of six data sets those that have a finished run.
  cifar10, emnist = tables.values()
  assert list(tables) == [
    'GeoMed, no attack, CIFAR-10',
    'GeoMed, no attack, EMNIST',
  ]
  assert len(cifar10) == 2
  # Plain: the last is 3 + 1.2, the last ten average 3 + 0.75.
  assert emnist[1:] == [
    (
      'plain',
      '4.200 (3.700 to 4.700)',
      '3.750 (3.250 to 4.250)',
      '3.100 (2.600 to 3.600)',
      '0.1000',
    ),
    (
      'layerwise cosine',
      '1.800 (1.300 to 2.300)',
      '2.250 (1.750 to 2.750)',
      '1.800 (1.300 to 2.300)',
      '-0.1000',
    ),
  ]
  for suffix in ('png', 'svg', 'pdf', 'md'):
    assert (tmp_path / 'figures' / f'lca_4.{suffix}').stat().st_size > 100
  with pytest.raises(ValueError, match='no finished run of lca_3'):
    figures.draw('lca_3', tmp_path, tmp_path)
  with pytest.raises(ValueError, match='no finished run of lca_4'):
    figures.draw('lca_4', tmp_path, tmp_path, prefix='reduced/')


def test_parameters_of_the_papers_networks(tmp_path):
  cnn, efficientnet = figures.draw('lca_1', tmp_path, tmp_path).values()
  # 3 x 3 convolutions of 1 -> 32 -> 64, dense layers of 12,544 -> 128 -> 10.
  sizes = {row[0]: row[1] for row in cnn[1:]}
  assert sizes == {
    'params/Dense_0/kernel': '1,605,632',
    'params/Conv_1/kernel': '18,432',
    'params/Dense_1/kernel': '1,280',
    'params/Conv_0/kernel': '288',
    'params/Dense_0/bias': '128',
    'params/Conv_1/bias': '64',
    'params/Conv_0/bias': '32',
    'params/Dense_1/bias': '10',
    'all': '1,625,866',
  }
  assert cnn[1][2] == '98.8%'
  # The head: 320 -> 1,280. In all torchvision's 5,288,548 parameters, less
  # the output layer of 1,000 classes, plus one of 10, and the 42,016 means and
  # variances of its batch normalisations.
  assert efficientnet[1][:2] == ('params/head/conv/kernel', '409,600')
  total = 5_288_548 - 1281 * 1000 + 1281 * 10 + 42_016
  assert efficientnet[-1][:2] == ('all', f'{total:,}')
  with pytest.raises(ValueError, match='lca_1 shows networks, not runs'):
    figures.draw('lca_1', tmp_path, tmp_path, prefix='reduced/')


def test_a_scale_is_read_by_its_prefix(tmp_path):
  runs = sweep.load('configs/legato_figures.py', 'cifar10')
  for name in runs:
    columns = {'round': [1, 2], 'test_accuracy': [0.5, 0.75]}
    write_run(tmp_path, f'{name}/0', columns)
  with pytest.raises(ValueError, match='holds no runs fig5/'):
    figures.draw('legato_5', tmp_path, tmp_path)
  (table,) = figures.draw('legato_5', tmp_path, tmp_path, 'cifar10/').values()
  assert [row[0] for row in table[1:]] == ['fedavg', 'krum', 'legato', 'median']
