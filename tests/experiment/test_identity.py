"""Tests of a run's id, which depends on what the run computes."""

import json

from run_files import config

from lca.experiment.identity import run_id


def test_what_a_run_computes_names_it_not_how_it_ends():
  nested = config().to_dict()
  name = run_id(nested)
  nested['train']['on_nonfinite'] = 'continue'
  assert run_id(nested) == name
  del nested['train']  # as in runs from before this key existed
  assert run_id(nested) == name
  nested['seed'] = 1
  assert run_id(nested) != name


def test_newer_keys_change_the_id_of_the_runs_that_they_change():
  nested = config().to_dict()
  name = run_id(nested)
  older = json.loads(json.dumps(nested))
  # As in older configs.
  del older['data']['validation'], older['checkpoint']
  del older['aggregator']['sigma']
  assert run_id(older) == name
  nested['checkpoint']['model'] = False
  assert run_id(nested) == name
  names = {name}
  for section, key, value in (
    ('data', 'validation', 0.1),
    ('checkpoint', 'best', 'test_loss'),
    ('aggregator', 'sigma', 0.1),
  ):
    changed = json.loads(json.dumps(nested))
    changed[section][key] = value
    names.add(run_id(changed))
  assert len(names) == 4
