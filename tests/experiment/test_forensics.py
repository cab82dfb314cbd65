"""The evidence of runs: files, labelled arrays, numbers worked out by hand."""

import functools
import math

import jax
import numpy as np
import pytest
from run_files import CONFIG, ROW

import lca.data
import lca.experiment
from lca import attacks
from lca.experiment.forensics import Writer, krum_eta, read
from lca.experiment.rundir import RunDirectory
from lca.models import CNN

NAN = math.nan


def round_of(**changes):
  """Returns the evidence of a round: two layers, four clients, the last lies.

  In both layers the honest clients 0, 1 and 2 lie 3, 4 and 5 from their mean.
  """
  both = np.ones((2, 4), np.float32)
  fields = {
    'ids': np.array([7, 3, 9, 5]),
    'byzantine': np.array([False, False, False, True]),
    'answered': np.ones(4, bool),
    'rejected': np.zeros((2, 4), bool),
    'norms': np.array([[1, 1, 1, 8], [2, 2, 2, 4]], np.float32),
    'distances': np.array([[3, 4, 5, 99]] * 2, np.float32),
    'cos_aggregate': both,
    'cos_honest': both,
    'aggregate_norm': np.array([3, 1], np.float32),
    'honest_norm': np.array([4, 1], np.float32),
    'gap': np.array([5, 1], np.float32),
    # Layer 0 is half of client 0 and a quarter of the attacker; 1 is client 1.
    'weights': np.array([[0.5, 0, 0, 0.25], [0, 1, 0, 0]], np.float32),
    'selected': np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool),
  }
  return fields | changes


def written(path, *rounds, layers=('w', 'b')):
  writer = Writer(path, layers, 0)
  for each in rounds:
    writer.add(each)
  return read(path)


def test_numbers_of_each_layer(tmp_path):
  found = written(tmp_path, round_of()).per_layer()
  # Parts of layer 0: 0.5 * 1 and 0.25 * 8.
  np.testing.assert_allclose(found['byzantine_share'], [[2 / 2.5, 0]])
  assert found['attackers_selected'].tolist() == [[1, 0]]
  np.testing.assert_allclose(found['honest_selected'], [[1 / 3, 1 / 3]])
  assert found['contributors'].tolist() == [[2, 1]]
  # 3, 4 and 5 make a right triangle; 1, 1 and 1 one of equal angles.
  np.testing.assert_allclose(found['angle'], [[90, 60]], rtol=1e-6)
  deviation = math.sqrt((9 + 16 + 25) / 3)
  np.testing.assert_allclose(
    found['distance'], [[5 / deviation, 1 / deviation]]
  )
  assert np.isnan(found['krum_bound']).all()  # 4 clients and f = 1


def test_numbers_of_the_whole_model(tmp_path):
  found = written(tmp_path, round_of()).per_round()
  parts = [0.5, 2, 0, 2]  # clients 0 and 1, and the attacker last
  np.testing.assert_allclose(found['byzantine_share'], [2 / sum(parts)])
  assert found['attackers_selected'].tolist() == [0.5]
  np.testing.assert_allclose(found['honest_selected'], [1 / 3])
  assert found['contributors'].tolist() == [3]
  a, h, gap = math.sqrt(10), math.sqrt(17), math.sqrt(26)
  angle = math.degrees(math.acos((10 + 17 - 26) / (2 * a * h)))
  np.testing.assert_allclose(found['angle'], [angle], rtol=1e-6)
  deviation = math.sqrt(2 * 50 / 3)
  np.testing.assert_allclose(found['distance'], [gap / deviation], rtol=1e-6)


def test_krums_bound_is_eta_times_deviation_over_the_norm(tmp_path):
  nobody = round_of(byzantine=np.zeros(4, bool), distances=np.ones((2, 4)))
  found = written(tmp_path, nobody)
  # eta(4, 0) is the root of 8; the deviation is 1 in each layer.
  np.testing.assert_allclose(
    found.per_layer()['krum_bound'], [[math.sqrt(8) / 4, math.sqrt(8)]]
  )
  np.testing.assert_allclose(
    found.per_round()['krum_bound'], [math.sqrt(8 * 2 / 17)]
  )
  assert np.isnan(found.per_round()['attackers_selected']).all()


def test_krums_constant_is_that_of_the_theorem():
  # 2 (7 - 2 + (2 * 3 + 4 * 4) / 1) = 54.
  assert krum_eta(7, 2) == pytest.approx(math.sqrt(54))
  assert math.isnan(krum_eta(6, 2))


def test_a_rule_without_a_choice_leaves_those_numbers_out(tmp_path):
  fields = round_of()
  del fields['weights'], fields['selected']
  found = written(tmp_path, fields)
  assert found.weights is None and found.selected is None
  assert list(found.per_round()) == ['angle', 'distance', 'krum_bound']


def test_rejected_and_missing_clients_do_not_count(tmp_path):
  distances = np.array([[3, 4, np.inf, 99], [3, 4, 5, 99]])
  rejected = ~np.isfinite(distances)
  found = written(tmp_path, round_of(distances=distances, rejected=rejected))
  found = found.per_round()
  np.testing.assert_allclose(found['distance'], [math.sqrt(26 / 25)], rtol=1e-6)
  missing = np.array([True, True, False, True])
  found = written(tmp_path, round_of(answered=missing))
  np.testing.assert_allclose(found.per_round()['honest_selected'], [0.5])


def test_rounds_after_the_checkpoint_are_cut_off(tmp_path):
  first, second, third = (round_of(ids=np.full(4, k)) for k in range(3))
  written(tmp_path, first, second)
  whole = (tmp_path / 'forensics.bin').read_bytes()
  Writer(tmp_path, ['w', 'b'], 1).add(third)
  assert read(tmp_path).clients[:, 0].tolist() == [0, 2]
  Writer(tmp_path, ['w', 'b'], 1).add(second)
  assert (tmp_path / 'forensics.bin').read_bytes() == whole
  with pytest.raises(OSError, match=r'forensics.bin is damaged .* 3 rounds'):
    Writer(tmp_path, ['w', 'b'], 3)


@pytest.mark.parametrize('name', ['forensics.json', 'forensics.bin'])
def test_a_restart_without_its_evidence_is_one_clear_error(tmp_path, name):
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start([], layers=['w', 'b'])
    directory.add(ROW, 1.0, round_of())
    directory.keep('model.safetensors', b'kept')
  (tmp_path / name).unlink()
  again = RunDirectory(tmp_path, CONFIG)
  with again, pytest.raises(OSError, match=r'damaged .*delete') as info:
    again.open()
    again.start([ROW], layers=['w', 'b'])
  assert str(info.value).startswith(f'{tmp_path}/forensics.json')
  assert (tmp_path / 'model.safetensors').exists()


def test_a_run_that_writes_its_first_round_is_read(tmp_path):
  written(tmp_path, round_of())
  (tmp_path / 'forensics.bin').unlink()  # it is written after the other file
  assert read(tmp_path) is None


def test_a_run_without_evidence(tmp_path):
  assert read(tmp_path) is None


def test_a_damaged_description_is_named(tmp_path):
  written(tmp_path, round_of())
  (tmp_path / 'forensics.json').write_text('{}')
  with pytest.raises(ValueError, match=r'forensics.json is damaged .*delete'):
    read(tmp_path)


def test_labels_of_the_arrays(tmp_path):
  xarray = pytest.importorskip('xarray')
  found = written(tmp_path, round_of()).to_xarray()
  assert isinstance(found, xarray.Dataset)
  attackers = found.selected.sel(layer='w').where(found.byzantine, drop=True)
  assert attackers.values.tolist() == [[True]]
  assert found.client.where(found.byzantine, drop=True).values.tolist() == [[5]]


def test_evidence_changes_nothing_and_names_the_attackers(tmp_path):
  options = {
    'num_clients': 10,
    'clients_per_round': 6,
    'num_rounds': 2,
    'local_epochs': 1,
    'attack': attacks.from_function(attacks.sign_flip, scale=5.0),
  }
  digits = lca.data.load('digits')
  simulate = functools.partial(
    lca.experiment.simulate,
    digits,
    CNN(10, (2,), hidden=(4,)),
    lca.krum,
    **options,
  )
  with pytest.raises(ValueError, match=r'forensics .* give a workdir'):
    simulate(eval={'forensics': True})
  plain = simulate()
  result = simulate(workdir=tmp_path, eval={'forensics': True})
  jax.tree.map(np.testing.assert_array_equal, result.variables, plain.variables)
  assert result.history.keys() == plain.history.keys()
  found = read(tmp_path)
  assert found.layers[0] == 'params/Conv_0/bias'
  # A fifth of the clients attack, one of them in each round.
  assert found.byzantine.sum(1).tolist() == [1, 1]
  assert len({*found.clients[0]}) == 6 and found.clients.max() < 10
  # Krum takes one client's update as it is.
  assert (found.selected.sum(2) == 1).all()
  norms = found.norms[found.selected].reshape(found.aggregate_norm.shape)
  np.testing.assert_allclose(norms, found.aggregate_norm, rtol=1e-5)
