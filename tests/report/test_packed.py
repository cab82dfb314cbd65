"""Reports of a packed sweep are those of the sweep's directory."""

import subprocess
import sys

import numpy as np
import processes
import pytest

from configs import tables as sweep_of_tables
from lca.experiment import index, packing, sweep
from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import summarize
from lca.report import figures, formats, runs, tables

ROUNDS = range(1, 13)


def write_run(workdir, name, seed, level):
  """Leaves behind the files of a run, with losses near a level."""
  config = sweep_of_tables.get_runs()[name]
  (config,) = sweep.choose({name: config}, seeds=[seed]).values()
  (place,) = index.record({f'{name}/{seed}': config}, workdir).values()
  rows = [
    {'round': r, 'test_loss': level + 1 / r, 'test_accuracy': 1 / (level + r)}
    for r in ROUNDS
  ]
  with RunDirectory(place, config.to_dict()) as directory:
    directory.open()
    directory.start(rows)
    directory.finish({'num_rounds': len(rows), **summarize(rows)})


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs')
  for level, variant in enumerate(('plain', 'cosine')):
    for seed in (0, 1):
      name = f'table1/fashion_mnist/{variant}'
      write_run(workdir, name, seed, level + seed / 3)
  return workdir


@pytest.fixture(scope='module')
def packed(workdir, tmp_path_factory):
  file = tmp_path_factory.mktemp('packed') / 'tables.zip'
  assert packing.pack(workdir, file) == (4, 0)
  return file


def test_tables(workdir, packed):
  assert tables.make(packed) == tables.make(workdir)


def test_figures(workdir, packed, tmp_path):
  from_file, from_folder = tmp_path / 'file', tmp_path / 'folder'
  assert figures.draw('lca_3', packed, from_file) == figures.draw(
    'lca_3', workdir, from_folder
  )
  for suffix in ('md', 'png'):
    name = f'lca_3.{suffix}'
    assert (from_file / name).read_bytes() == (from_folder / name).read_bytes()


def test_lines(workdir, packed):
  group = 'table1/fashion_mnist'
  from_file, from_folder = (
    runs.read_lines(place, group) for place in (packed, workdir)
  )
  np.testing.assert_equal(from_file, from_folder)
  assert list(from_file) == ['cosine', 'plain']


def test_errors_are_about_the_file(packed, tmp_path):
  with pytest.raises(ValueError, match=f'^{packed} holds no runs fig5/'):
    figures.draw('legato_5', packed, tmp_path)
  with pytest.raises(ValueError, match=f'^{packed} holds no finished run no/'):
    tables.make(packed, 'no/')


def report(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'lca.report', *arguments],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )


def test_the_commands(workdir, packed, tmp_path):
  """Packs a sweep and reports from the file, as from the directory."""
  file, output = tmp_path / 'new.zip', tmp_path / 'output'
  done = report(f'--workdir={workdir}', f'--pack={file}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
    f'{file} holds 4 finished runs; 0 unfinished runs were left out\n'
  )
  assert file.read_bytes() == packed.read_bytes()
  reports = ['--tables', '--figure=lca_3', f'--output={output}']
  done = report(f'--workdir={file}', *reports)
  assert done.returncode == 0, done.stderr
  (table, *_) = tables.make(workdir)
  text = (output / 'table1.md').read_text()
  assert text == formats.to_markdown(table)
  assert text in done.stdout and '## lca_3' in done.stdout
  assert (output / 'lca_3.png').is_file()
  assert {*tmp_path.iterdir()} == {file, output}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir={packed}', '--tables'], 'give --output=FOLDER'),
    (['--workdir={tmp}'], 'nothing to report: give --heatmap, --table'),
    (['--workdir={tmp}', '--pack={tmp}/a.zip'], 'no finished run to pack'),
    (['--workdir={tmp}/none.zip', '--pack={tmp}/a.zip'], 'No such file'),
  ],
)
def test_what_the_command_refuses(packed, tmp_path, arguments, message):
  done = report(*(a.format(packed=packed, tmp=tmp_path) for a in arguments))
  assert done.returncode == 1
  said = ' '.join((done.stdout + done.stderr).split())
  assert message in said
  assert 'Traceback' not in said
  assert not list(tmp_path.iterdir())
