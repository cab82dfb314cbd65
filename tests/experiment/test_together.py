"""Runs of several seeds run together as each would run by itself."""

import csv
import math
import shutil

import numpy as np
import pytest
from run_files import config

from lca.experiment import recorder, together, train
from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import is_finished
from lca.federated import plan
from lca.federated.drawing import Drawing
from lca.federated.seeds import SeedsSimulation

# Dirichlet partitions leave 20, 18, 17 and 18 clients of seeds 0 to 3, and too
# few of seed 4.
PRESETS = 'layerwise_cosine_krum,model_replacement,dirichlet'
CHANGES = {
  'num_rounds': 3,
  'data.validation': 0.1,
  'client.drop_rate': 0.05,
  'checkpoint.best': 'validation_accuracy',
  'aggregator.f': 6,
}


def configs(folder, seeds, presets=PRESETS, **changes):
  """Returns configs by the directory of their run."""
  return {
    folder / f'{seed}': config(
      presets, **CHANGES | {'seed': seed} | changes
    ).to_dict()
    for seed in seeds
  }


def never():
  return False


def after(calls):
  """Returns a function that says to stop after some calls: one before the
  first round, and one after each round."""
  left = iter([False] * calls)
  return lambda: next(left, True)


def metrics(path):
  with open(path / 'metrics.csv') as file:
    return [
      {k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)
    ]


def check_same(path, reference):
  """Checks that two directories hold the same run, but for rounding."""
  ours, theirs = metrics(path), metrics(reference)
  assert len(ours) == len(theirs) == 3
  for a, b in zip(ours, theirs, strict=True):
    assert list(a) == list(b)
    for name in a:
      # Rounding may change the class of a few of 360 examples.
      slack = {'atol': 0.03} if 'accuracy' in name else {'rtol': 2e-3}
      np.testing.assert_allclose(a[name], b[name], err_msg=name, **slack)
  assert (path / 'clients.csv').read_text() == (
    reference / 'clients.csv'
  ).read_text()
  names = {
    each.name for each in reference.iterdir() if 'events' not in each.name
  }
  assert names == {
    each.name for each in path.iterdir() if 'events' not in each.name
  }


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Runs seeds 0 to 3 one after the other; returns the folder of their runs."""
  folder = tmp_path_factory.mktemp('alone')
  for path, each in configs(folder, range(4)).items():
    train.train_and_evaluate(each, path)
  return folder


@pytest.fixture
def groups(monkeypatch):
  """Returns a list that gets the number of seeds of each program."""
  seen, init = [], SeedsSimulation.__init__

  def recorded(self, runs, **parts):
    seen.append(len(runs))
    init(self, runs, **parts)

  monkeypatch.setattr(SeedsSimulation, '__init__', recorded)
  return seen


def test_seeds_together_are_the_runs_alone(tmp_path, alone, groups):
  assert together.run(configs(tmp_path, range(4)), 1, never) == {}
  assert groups == [4]
  for seed in range(4):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_runs_that_stop_go_on_together(tmp_path, alone, groups):
  runs = configs(tmp_path, range(2))
  assert together.run(runs, 1, after(1)) == {}
  for path in runs:
    assert len(metrics(path)) == 1 and not is_finished(path)
    assert [each.name for each in (path / 'checkpoints').iterdir()] == ['1']
  assert together.run(runs, 1, never) == {}
  assert groups == [2, 2]
  for seed in range(2):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_only_runs_at_the_same_round_are_stacked(tmp_path, alone, groups):
  """Seed 0 is finished, and seed 1 has stopped after its first round."""
  runs = configs(tmp_path, range(4))
  shutil.copytree(alone / '0', tmp_path / '0')
  train.run(train.set_up(runs[tmp_path / '1'], tmp_path / '1'), lambda: True)
  assert together.run(runs, 1, never) == {}
  assert groups == [2]
  for seed in range(4):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_alone(
  tmp_path, alone, groups
):
  runs = configs(tmp_path, range(3), **{'checkpoint.every': 1})
  together.run(runs, 1, after(2))
  shutil.rmtree(tmp_path / '1/checkpoints/2/about')
  assert together.run(runs, 1, never) == {}
  assert groups == [3, 3]
  for seed in range(3):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_a_run_that_fails_leaves_the_others_be(tmp_path, alone, monkeypatch):
  add = recorder.Recorder.add

  def fails(self, state, metrics, seconds):
    if self._experiment.settings.run.seed == 1 and len(self.rows) == 1:
      metrics['nonfinite'] = 7
    add(self, state, metrics, seconds)

  monkeypatch.setattr(recorder.Recorder, 'add', fails)
  failures = together.run(configs(tmp_path, [0, 1, 2, 4]), 1, never)
  assert [path.name for path in failures] == ['4', '1']
  assert 'a round needs 14 honest clients' in str(failures[tmp_path / '4'])
  assert isinstance(failures[tmp_path / '1'], FloatingPointError)
  assert len(metrics(tmp_path / '1')) == 2 and not (tmp_path / '4').exists()
  for seed in (0, 2):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_what_all_share_may_fail(tmp_path, alone, groups, monkeypatch):
  """The examples of seed 1 cannot be read: it fails alone, others finish."""
  read = Drawing.read

  def broken(self, *arguments):
    if self._seed == 1:
      raise ValueError('image 17 is damaged')
    return read(self, *arguments)

  monkeypatch.setattr(Drawing, 'read', broken)
  failures = together.run(configs(tmp_path, range(3)), 1, never)
  assert [path.name for path in failures] == ['1']
  assert 'image 17 is damaged' in str(failures[tmp_path / '1'])
  assert groups == [3]
  for seed in (0, 2):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_a_full_disk_of_one_run_is_its_own(tmp_path, alone, monkeypatch):
  add = RunDirectory.add

  def full(self, row, *arguments):
    if self.path.name == '1' and row['round'] == 2:
      raise OSError(28, 'No space left on device')
    add(self, row, *arguments)

  monkeypatch.setattr(RunDirectory, 'add', full)
  ended = []
  failures = together.run(
    configs(tmp_path, range(3)), 1, never, on_end=ended.append
  )
  assert [*failures] == [tmp_path / '1']
  assert failures[tmp_path / '1'].filename == str(tmp_path / '1')
  assert ended == [tmp_path / '0', tmp_path / '2']
  for seed in (0, 2):
    check_same(tmp_path / f'{seed}', alone / f'{seed}')


def test_a_run_that_another_process_has_finished_is_left_alone(tmp_path, alone):
  def finish_one():
    shutil.copytree(alone / '1', tmp_path / '1', dirs_exist_ok=True)

  runs = configs(tmp_path, range(2))
  assert together.run(runs, 1, never, on_start=finish_one) == {}
  summary = (alone / '1/summary.json').read_bytes()
  assert (tmp_path / '1/summary.json').read_bytes() == summary
  check_same(tmp_path / '0', alone / '0')


def test_no_round_begins_after_a_stop(tmp_path):
  runs, stops = configs(tmp_path, range(2)), []
  together.run(runs, 1, lambda: bool(stops), on_start=lambda: stops.append(1))
  assert not any(path.exists() for path in runs)


@pytest.mark.parametrize(('fit', 'sizes'), [(2, [3, 2]), (1, [3, 2])])
def test_as_many_seeds_run_together_as_fit(
  tmp_path, monkeypatch, groups, fit, sizes
):
  """The last of three seeds runs alone if two fit; otherwise each of them."""
  plan_of = plan.of

  def of(simulation):
    needed = plan_of(simulation)
    fits = len(getattr(simulation, 'runs', [0])) <= fit
    return needed if fits else needed._replace(training=math.inf)

  monkeypatch.setattr(plan, 'of', of)
  runs = configs(tmp_path, range(3), num_rounds=1)
  assert together.run(runs, 1, never) == {}
  assert groups == sizes
  assert all(map(is_finished, runs))


def test_a_streamed_run_runs_alone(tmp_path, groups):
  changes = {'parallel.stream': True, 'aggregator.f': 6}
  runs = configs(
    tmp_path, [0, 1], 'krum,model_replacement,dirichlet', **changes
  )
  assert together.run(runs, 1, never) == {}
  assert groups == [] and all(map(is_finished, runs))
