"""The papers' tables, from runs made by hand in the real format."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import tables as sweep_of_tables
from lca.experiment import index, sweep
from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import summarize
from lca.report import formats, tables

ROOT = pathlib.Path(__file__).parents[2]
ROUNDS = range(1, 13)
RUNS = sweep_of_tables.get_runs()
REDUCED = sweep_of_tables.get_runs('reduced')


def write_run(
  workdir, name, losses, accuracies, seed=0, finish=True, values=None
):
  """Leaves behind the files of a run with these test losses and accuracies."""
  (config,) = sweep.choose(
    {name: (RUNS | REDUCED)[name]}, seeds=[seed], values=values
  ).values()
  (place,) = index.record({f'{name}/{seed}': config}, workdir).values()
  directory = RunDirectory(place, config.to_dict())
  directory.open()
  rows = [
    {'round': r, 'test_loss': loss, 'test_accuracy': accuracy}
    for r, loss, accuracy in zip(ROUNDS, losses, accuracies, strict=True)
  ]
  directory.start(rows)
  if finish:
    directory.finish({'num_rounds': len(rows), **summarize(rows)})


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Fashion-MNIST in Table 3, and one run of CelebA-S non-IID in Table 1."""
  workdir = tmp_path_factory.mktemp('runs')
  flat, fives = [1.0] * 12, [0.5] * 12
  falling = [2 - r / 10 for r in ROUNDS]
  write_run(workdir, 'table3/fashion_mnist/plain', falling, fives)
  climbing = [0.25] * 2 + [0.75] * 10
  write_run(workdir, 'table3/fashion_mnist/plain', flat, climbing, seed=1)
  spike = [0.3] + [0.8] * 11
  tens = [0.1] * 11 + [0.99]
  write_run(workdir, 'table3/fashion_mnist/cosine', spike, tens)
  write_run(
    workdir, 'table3/fashion_mnist/layerwise', flat, fives, finish=False
  )
  write_run(workdir, 'table1/celeba_s_non_iid/plain', flat, fives)
  return workdir


def by_name(workdir, prefix=''):
  return {table.name: table for table in tables.make(workdir, prefix)}


def test_the_printed_tables():
  blocks = tables.paper()
  assert len(blocks) == 36
  assert all(tuple(block.printed) == tables.VARIANTS for block in blocks)
  last = blocks[-1]
  assert (last.table, last.dataset) == (6, 'fashion_mnist')
  assert last.printed['layerwise_cosine'] == {
    'final_test_loss': 0.438,
    'average_test_loss': 0.488,
    'min_test_loss': 0.378,
    'average_test_accuracy': 0.899,
    'max_test_accuracy': 0.902,
  }


@pytest.mark.quick
def test_csv_holds_mean_deviation_and_the_papers(workdir):
  text = formats.to_csv(by_name(workdir)['table3'])
  rows = list(csv.DictReader(text.splitlines()))
  assert [row['method'] for row in rows] == [
    *('Bulyan', 'Layerwise Bulyan', 'Cosine Bulyan', 'Layerwise cosine Bulyan')
  ]
  plain = {k: float(v) for k, v in rows[0].items() if v[:1].isdigit()}
  # Seed 0 ends at 0.8, seed 1 at 1.0: mean 0.9, deviation 0.2 / sqrt(2).
  # Rounds 3 to 12 of seed 0 average 2 - 0.75.
  assert plain == pytest.approx(
    {
      'seeds': 2,
      'final_test_loss': 0.9,
      'final_test_loss_deviation': 0.2 / 2**0.5,
      'final_test_loss_paper': 0.491,
      'average_test_loss': 1.125,
      'average_test_loss_deviation': 0.25 / 2**0.5,
      'average_test_loss_paper': 0.495,
      'min_test_loss': 0.9,
      'min_test_loss_deviation': 0.2 / 2**0.5,
      'min_test_loss_paper': 0.452,
      'average_test_accuracy': 0.625,
      'average_test_accuracy_deviation': 0.25 / 2**0.5,
      'average_test_accuracy_paper': 0.882,
      'max_test_accuracy': 0.625,
      'max_test_accuracy_deviation': 0.25 / 2**0.5,
      'max_test_accuracy_paper': 0.885,
    }
  )
  _, layerwise, cosine, _ = rows
  assert layerwise['seeds'] == '0'
  assert layerwise['final_test_loss'] == ''  # not finished
  assert layerwise['final_test_loss_paper'] == '0.46'
  assert float(cosine['average_test_accuracy']) == pytest.approx(0.189)
  assert cosine['average_test_accuracy_deviation'] == ''  # of one seed


@pytest.mark.quick
def test_markdown_marks_the_best_and_counts_what_is_missing(workdir):
  text = formats.to_markdown(by_name(workdir)['table3'])
  lines = {
    line.split(' | ')[1]: line for line in text.splitlines() if ' | ' in line
  }
  assert lines['Bulyan'] == (
    '| Fashion-MNIST | Bulyan | 2 | 0.900 ± 0.141 (0.491) '
    '| 1.125 ± 0.177 (0.495) | 0.900 ± 0.141 (0.452) '
    '| **0.625 ± 0.177** (0.882) | 0.625 ± 0.177 (0.885) |'
  )
  assert lines['Layerwise Bulyan'] == (
    '| Fashion-MNIST | Layerwise Bulyan | 0 | (0.460) | (0.497) | (0.433) '
    '| (0.881) | (0.885) |'
  )
  assert lines['Cosine Bulyan'] == (
    '| Fashion-MNIST | Cosine Bulyan | 1 | **0.800** (0.473) '
    '| **0.800** (**0.448**) | **0.300** (**0.374**) | 0.189 (**0.905**) '
    '| **0.990** (**0.907**) |'
  )
  assert '22 of 24 rows have no finished run.' in text
  assert 'no runs of CIFAR-10, CelebA-S, CelebA-S non-IID, EMNIST, EM' in text
  assert 'fashion_mnist with cnn, 100 rounds, 100 clients a round' in text


def test_only_the_bulyans_tables_say_what_is_printed_there(workdir):
  tables_of = by_name(workdir)
  assert list(tables_of) == ['table1', 'table3', 'gains', 'slopes']
  assert 'bulyan_trimmed' in formats.to_markdown(tables_of['table3'])
  assert 'bulyan_trimmed' not in formats.to_markdown(tables_of['table1'])


def test_one_run_alone_is_not_the_best(workdir):
  plain = by_name(workdir)['table1'].rows[0]
  assert not any(number.best for number in plain[3:])


def test_gains_are_points_and_ratios(workdir):
  table = by_name(workdir)['gains']
  celeba, fashion = table.rows
  about, numbers = celeba[:4], celeba[4:]
  # The paper's best is layerwise cosine Krum; ours has no variant yet.
  assert about == [
    *('1', 'Krum, no attack', 'CelebA-S non-IID', '(Layerwise cosine)')
  ]
  assert [n.mean for n in numbers] == [None] * 4
  figures = [n.paper for n in numbers]
  assert figures == pytest.approx([0.724, 0.885, 16.1, 1.2224], abs=1e-4)
  # Of ours, cosine alone is there beside the plain one.
  assert fashion[3] == 'Cosine (Cosine)'
  means = [number.mean for number in fashion[4:]]
  assert means == pytest.approx([0.625, 0.189, -43.6, 0.3024])


def test_the_papers_claims_of_accuracy_are_points():
  rows = {(b.table, b.dataset): b.printed for b in tables.paper()}

  def points(*key):
    row = rows[key]
    best, plain = row['layerwise_cosine'], row['plain']
    metric = 'average_test_accuracy'
    return 100 * (best[metric] - plain[metric])

  assert points(1, 'celeba_s_non_iid') == pytest.approx(16.1)
  assert points(3, 'cifar10') == pytest.approx(11.8)


def test_slopes(workdir):
  table = by_name(workdir)['slopes']
  (celeba, fashion) = table.rows
  assert celeba[3].mean == pytest.approx(0, abs=1e-12)
  assert fashion[3].values == pytest.approx([-0.1, 0], abs=1e-12)
  assert fashion[4].values == []
  text = formats.to_markdown(table)
  assert '-0.0500 ± 0.0707 |  |' in text


def test_a_slope_is_of_the_last_evaluations():
  rounds = np.arange(1.0, 31)
  # Evaluated in even rounds; the last ten begin at round 12.
  losses = np.where(rounds < 12, 100, 0.02 * rounds)
  losses[rounds % 2 == 1] = np.nan
  assert tables.slope(metrics(rounds, losses)) == pytest.approx(0.02)
  assert tables.slope(metrics(rounds, losses), window=11) < 0
  assert np.isnan(tables.slope(metrics(rounds[:2], losses[:2])))
  losses[-1] = np.inf
  assert np.isnan(tables.slope(metrics(rounds, losses)))


def metrics(rounds, losses):
  """Returns metrics of rounds; those without a loss were not evaluated."""
  accuracies = np.where(np.isnan(losses), np.nan, 0.5)
  return {'round': rounds, 'test_loss': losses, 'test_accuracy': accuracies}


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
  fives = [0.5] * 12
  write_run(tmp_path, 'table6/emnist/plain', [float('nan')] * 12, fives)
  write_run(tmp_path, 'table6/emnist/cosine', [2.0] * 12, fives)
  plain, _, cosine, _ = by_name(tmp_path)['table6'].rows
  assert plain[3].text('', str) == 'nan (0.042)'
  assert cosine[3].best and not plain[3].best
  assert cosine[6].best and plain[6].best  # equal accuracies


def test_two_configs_are_no_row(tmp_path):
  places = tmp_path / 'one', tmp_path / 'other'
  name, rows = 'table1/emnist/plain', ([1.0] * 12, [0.5] * 12)
  write_run(places[0], name, *rows)
  write_run(places[1], name, *rows, seed=1, values={'client.batch_size': '8'})
  # As if one workdir had been copied into the other.
  names = index.names(places[0]) | {
    seed: f'../other/{place}' for seed, place in index.names(places[1]).items()
  }
  (places[0] / 'sweep.json').write_text(json.dumps(names))
  with pytest.raises(
    ValueError, match=r'client\.batch_size is 256 in .* and 8'
  ):
    tables.make(places[0])


def test_a_reduced_sweep_and_what_is_beyond_the_tables(tmp_path):
  fives = [0.5] * 12
  for name in (
    'table4/fashion_mnist/plain',
    'beyond_model_replacement/fashion_mnist/cosine_krum_noclip',
    'beyond_none/fashion_mnist/fedavg',
  ):
    write_run(tmp_path, f'reduced/{name}', [1.0] * 12, fives)
  with pytest.raises(ValueError, match='no finished run TABLE/DATASET'):
    tables.make(tmp_path)
  found = by_name(tmp_path, 'reduced/')
  assert list(found) == [
    *('table4', 'beyond_model_replacement', 'beyond_none', 'gains', 'slopes')
  ]
  (row,) = found['beyond_model_replacement'].rows
  assert row[:3] == ['Fashion-MNIST', 'cosine_krum_noclip', '1']
  assert [number.text('', str) for number in row[3:]] == [
    *('1.000', '1.000', '1.000', '0.500', '0.500')
  ]
  assert '20 clients a round' in formats.to_markdown(found['table4'])


def test_latex_is_well_formed(workdir, tmp_path):
  write_run(
    tmp_path,
    'reduced/beyond_none/fashion_mnist/cosine_krum_noclip',
    [1.0] * 12,
    [0.5] * 12,
  )
  beyond = by_name(tmp_path, 'reduced/')['beyond_none']
  assert r'cosine\_krum\_noclip' in check_latex(beyond)
  tables_of = by_name(workdir)
  for table in tables_of.values():
    check_latex(table)
  text = formats.to_latex(tables_of['table3'])
  assert r'\textbf{0.625 $\pm$ 0.177} (0.882)' in text
  assert r'\textbf{0.300} (\textbf{0.374})' in text
  assert r'bulyan\_trimmed' in text


def check_latex(table):
  """Braces, environments, columns and special characters; returns the text."""
  text = formats.to_latex(table)
  bare = re.sub(r'\\[&%$#_{}]', '', text)
  assert not re.search(r'[_#%~^]', bare)
  depth = 0
  for brace in re.findall('[{}]', bare):
    depth += 1 if brace == '{' else -1
    assert depth >= 0
  assert depth == 0
  assert bare.count('$') == 2 * bare.count('$\\pm$')
  begun, ended = (
    re.findall(rf'\\{word}{{(\w+)}}', text) for word in ('begin', 'end')
  )
  assert begun == ended[::-1] == ['table', 'tabular']
  (columns,) = re.findall(r'\\begin{tabular}{([lr]+)}', text)
  assert re.findall(r'\\(\w+rule)\b', text) == [
    'toprule',
    'midrule',
    'bottomrule',
  ]
  assert rf'\label{{tab:{table.name.replace("_", "-")}}}' in text
  rows = [line for line in bare.splitlines() if line.endswith(r'\\')]
  assert len(rows) == 1 + len(table.rows)
  assert {row.count('&') for row in rows} == {len(columns) - 1}
  return text


def test_special_characters_of_latex():
  table = formats.Table('x', r'50 % & a_b^c~{d}\e $#', ('a',), [['b']])
  (caption,) = re.findall(r'\\caption{(.*)}', formats.to_latex(table))
  assert caption == (
    r'50 \% \& a\_b\textasciicircum{}c\textasciitilde{}\{d\}'
    r'\textbackslash{}e \$\#'
  )


def test_the_command_writes_all_formats(workdir, tmp_path):
  command = [sys.executable, '-m', 'lca.report', f'--workdir={workdir}']
  flags = ['--tables', '--figure=lca_5', f'--output={tmp_path}']
  done = subprocess.run(
    [*command, *flags], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  tables_of = by_name(workdir)
  names = [f'{n}.{s}' for n in tables_of for s in ('csv', 'md', 'tex')]
  figures = [f'lca_5.{suffix}' for suffix in ('md', 'pdf', 'png', 'svg')]
  written = sorted(path.name for path in tmp_path.iterdir())
  assert written == sorted(names + figures)
  text = (tmp_path / 'table3.md').read_text()
  assert text == formats.to_markdown(tables_of['table3'])
  assert text in done.stdout
