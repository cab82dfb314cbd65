"""A run is named by what it computes."""

from run_files import config

from lca.experiment.identity import run_id


def test_what_a_run_computes_names_it_not_how_it_ends():
  nested = config().to_dict()
  name = run_id(nested)
  nested['train']['on_nonfinite'] = 'continue'
  assert run_id(nested) == name
  del nested['train']  # a run from before there was the key
  assert run_id(nested) == name
  nested['seed'] = 1
  assert run_id(nested) != name
