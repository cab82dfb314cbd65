"""Tests of a run's id, which depends on what the run computes."""

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
