"""Published runs keep their ids, and today's configs lead to them."""

import itertools
import json
import pathlib
import zipfile

import pytest

from configs import attacks, backdoors, forensics, legato_figures, tables
from lca.experiment import packing, sweep
from lca.experiment.identity import check_same_run, run_id

RESULTS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'results'
RUNS = {
  'attacks': 176,
  'backdoors': 390,
  'fashion_mnist_check': 3,
  'forensics': 12,
  'legato': 100,
  'tables': 80,
}


def members(name):
  """Returns the contents of the JSON files of a recorded sweep by name."""
  with zipfile.ZipFile(RESULTS / f'{name}.zip') as packed:
    return {
      each.removesuffix('.json'): json.loads(packed.read(each))
      for each in packed.namelist()
      if each.endswith('.json')
    }


def test_all_recorded_sweeps_are_known():
  assert sorted(path.stem for path in RESULTS.glob('*.zip')) == [*RUNS]
  assert not list(RESULTS.glob('**/config.json'))


def test_ids_are_the_names_of_the_recorded_runs():
  found = {
    run: run_id(config)
    for name in RUNS
    for run, config in members(name)['configs'].items()
  }
  assert len(found) == sum(RUNS.values())
  assert all(name == run for name, run in found.items())


@pytest.mark.parametrize(
  ('name', 'runs', 'values'),
  [
    ('attacks', attacks.get_runs(), {}),
    ('backdoors', backdoors.get_runs(), {}),
    ('forensics', forensics.get_runs(), {}),
    ('legato', legato_figures.get_runs(), {'data.name': 'fashion_mnist'}),
    ('tables', tables.get_runs('reduced'), {}),
  ],
)
def test_todays_sweeps_lead_to_the_recorded_runs(name, runs, values):
  packed = members(name)
  recorded, configs = packed['sweep'], packed['configs']
  seeds = sorted({int(name.rpartition('/')[2]) for name in recorded})
  today = sweep.choose(runs, seeds=seeds, values=values)
  composed = {name: run_id(config.to_dict()) for name, config in today.items()}
  assert recorded.items() <= composed.items()
  for name, run in itertools.islice(recorded.items(), 0, None, 10):
    new = json.loads(json.dumps(today[name].to_dict()))
    check_same_run(run, configs[run], new)


@pytest.mark.parametrize('name', RUNS)
def test_recorded_runs_are_finished_and_named(name, tmp_path):
  """Packing what comes out of a file gives the file again."""
  packing.unpack(RESULTS / f'{name}.zip', tmp_path / 'runs')
  packed, left_out = packing.pack(tmp_path / 'runs', tmp_path / 'again.zip')
  parsed = members(name)
  assert left_out == 0 and packed == len(parsed['configs'])
  assert set(parsed['sweep'].values()) == parsed['configs'].keys()
  assert members_of(tmp_path / 'again.zip') == members_of(
    RESULTS / f'{name}.zip'
  )


def members_of(file):
  with zipfile.ZipFile(file) as packed:
    return {name: packed.read(name) for name in packed.namelist()}


def test_options_of_a_pre_aggregator_stood_among_the_rules():
  old = {'name': 'median', 'pre': ['nnm'], 'f': 2, 'median': 'interpolated'}
  new = {'name': 'median', 'pre': ['nnm'], 'median': 'interpolated'}
  new['nnm'] = {'f': 2}
  assert run_id({'aggregator': new}) == run_id({'aggregator': old})
  check_same_run('here', {'aggregator': old}, {'aggregator': new})
  other = new | {'nnm': {'f': 3}}
  assert run_id({'aggregator': other}) != run_id({'aggregator': old})


def test_options_that_differ_keep_their_section():
  both = {'name': 'centered_clip', 'pre': ['static_clip'], 'threshold': 10.0}
  ids = {
    run_id({'aggregator': both | {'static_clip': {'threshold': threshold}}})
    for threshold in (1.0, 2.0, 10.0)
  }
  assert len(ids) == 3
