"""Published runs keep their ids, and today's configs lead to them."""

import itertools
import json
import pathlib

import pytest

from configs import attacks, legato_figures, tables
from lca.experiment import sweep
from lca.experiment.identity import check_same_run, run_id

RESULTS = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'results'
RECORDED = sorted(RESULTS.glob('*/*/config.json'))


def config_of(file):
  return json.loads(file.read_text())['config']


def test_ids_are_the_names_of_the_recorded_directories():
  found = {
    file.parent.name: run_id(config_of(file))
    for file in RECORDED
    if (file.parents[1] / 'sweep.json').exists()
  }
  assert len(found) > 300
  assert all(name == run for name, run in found.items())


@pytest.mark.parametrize(
  ('folder', 'runs', 'values'),
  [
    ('attacks', attacks.get_runs(), {}),
    ('legato', legato_figures.get_runs(), {'data.name': 'fashion_mnist'}),
    ('tables', tables.get_runs('reduced'), {}),
  ],
)
def test_todays_sweeps_lead_to_the_recorded_runs(folder, runs, values):
  recorded = json.loads((RESULTS / folder / 'sweep.json').read_text())
  seeds = sorted({int(name.rpartition('/')[2]) for name in recorded})
  today = sweep.choose(runs, seeds=seeds, values=values)
  composed = {name: run_id(config.to_dict()) for name, config in today.items()}
  assert recorded.items() <= composed.items()
  for name, place in itertools.islice(recorded.items(), 0, None, 10):
    old = config_of(RESULTS / folder / place / 'config.json')
    new = json.loads(json.dumps(today[name].to_dict()))
    check_same_run(place, old, new)


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
