"""A streamed round equals the round that stacks all updates."""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import pytest
from simulations import POPULATION, simulation

import lca
from lca import attacks
from lca.federated import block_passes, row_file, streaming
from lca.federated.metrics import METRICS
from lca.federated.streaming import StreamedSimulation

mean, krum = (lca.mean, {'weights': None}), (lca.krum, {'f': 2})
flip = attacks.label_flipping
noise = functools.partial(attacks.from_function, attacks.gaussian, sigma=2.0)
empires = attacks.from_function(attacks.fall_of_empires, epsilon=0.5)
constant = attacks.from_function(attacks.constant, value=1.0)
alie = attacks.from_function(attacks.alie, z=1.5)

# By what a round does: one pass or two, with an attack before or in the passes.
ROUNDS = {
  'a sum': (lca.mean, {}, flip()),
  'a sum, boosted': (*mean, flip(boost=5.0)),
  'a sum, noise': (*mean, noise()),
  'a sum by column': (*mean, flip(boost='replace')),
  'norms': (lca.cge, {'f': 2}, noise(layers='bias')),
  'norms by column': (lca.cge, {'f': 2}, empires),
  'products': (*krum, attacks.from_function(attacks.non_finite)),
  'products by column': (*krum, alie),
  # RFLBAT leaves out the two attackers, who send the same.
  'products, clusters': (lca.rflbat, {}, constant),
  'layers': (lca.layerwise(lca.cosine(lca.bulyan)), {'f': 1}, noise()),
  'layers by column': (lca.layerwise(lca.cosine(lca.krum)), {'f': 2}, alie),
  'columns': (lca.median, {}, noise()),
  'columns by column': (
    lca.layerwise(lca.chain(lca.nnm, lca.median)),
    {'f': 2},
    empires,
  ),
}


def _both(monkeypatch, data, case, devices=1, population=POPULATION, **changes):
  """Runs two rounds both ways, and returns the models and metrics of each."""
  rule, hyper, attack = case
  # Groups of two clients and blocks of 128 columns, so that there are many.
  monkeypatch.setattr(streaming, 'GROUP_BYTES', 1)
  monkeypatch.setattr(block_passes, 'BLOCK_BYTES', 1)
  results = []
  for more in ({}, {'kind': StreamedSimulation}):
    sim = simulation(
      data,
      devices,
      chunk_size=2,
      population=population,
      aggregator=lca.stateless(rule, **hyper),
      attack=attack,
      **changes,
      **more,
    )
    state, rows = sim.init(), []
    for i in range(2):
      state, metrics = sim.run_round(state, i)
      rows.append(metrics)
    results.append((jax.device_get(state.variables), rows))
  return results


def _assert_close(results):
  (stacked, stacked_rows), (streamed, streamed_rows) = results
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    streamed,
    stacked,
  )
  for row, same in zip(streamed_rows, stacked_rows, strict=True):
    assert row.keys() == same.keys()
    np.testing.assert_allclose([*row.values()], [*same.values()], rtol=1e-4)


@pytest.mark.parametrize('name', ROUNDS)
def test_a_streamed_round_gives_the_same_model(data, monkeypatch, name):
  _assert_close(_both(monkeypatch, data, ROUNDS[name], layers='leaf'))


@pytest.mark.parametrize(
  'name', ['a sum', 'products by column', 'layers', 'columns']
)
def test_two_devices_and_clients_that_do_not_answer(data, monkeypatch, name):
  population = dataclasses.replace(POPULATION, drop_rate=0.2)
  case = ROUNDS[name]
  _assert_close(
    _both(monkeypatch, data, case, devices=2, population=population)
  )


def test_close_rows_keep_their_distances(data, monkeypatch):
  """Updates with a large common part are told apart by a further pass."""

  def shifted(updates, *, byzantine, **_):
    del byzantine
    return jax.tree.map(lambda x: x + 100, updates)

  # The attack moves all rows, which the rules see as a large common part.
  attack = attacks.NO_ATTACK._replace(on_updates=shifted)
  _assert_close(_both(monkeypatch, data, (*krum, attack)))


def test_a_coordinate_attack_adds_nothing_beyond_the_leaves(data, monkeypatch):
  """Blocks are wider than small leaves: the norms count none of the rest."""

  @attacks.update_attack('coordinate')
  def shifted(updates, *, byzantine, key=None):
    return attacks.replace(
      updates, byzantine, jax.tree.map(lambda x: x[0] + 1, updates)
    )

  attack = attacks.from_function(shifted)
  rule = lca.layerwise(lca.cge), {'f': 2}
  _assert_close(_both(monkeypatch, data, (*rule, attack), layers='leaf'))


class _Files(row_file.RowFile):
  """Counts the blocks that are read."""

  read_blocks = 0

  def read(self, block):
    _Files.read_blocks += 1
    return super().read(block)


@pytest.mark.parametrize(
  ('name', 'passes'),
  [
    ('a sum', 0),
    ('a sum by column', 2),
    ('columns', 1),
    ('columns by column', 2),
    ('norms', 1),
    ('norms by column', 2),
    ('products', 2),
    ('products by column', 2),
  ],
)
def test_no_pass_is_made_without_need(data, monkeypatch, name, passes):
  monkeypatch.setattr(streaming, 'RowFile', _Files)
  monkeypatch.setattr(_Files, 'read_blocks', 0)
  monkeypatch.setattr(block_passes, 'BLOCK_BYTES', 1)
  rule, hyper, attack = ROUNDS[name]
  sim = simulation(
    data,
    aggregator=lca.stateless(rule, **hyper),
    attack=attack,
    kind=StreamedSimulation,
  )
  sim.run_round(sim.init(), 0)
  assert _Files.read_blocks == passes * len(sim._on_server.blocks)


REFUSED = {
  'momentum': ({'momentum': 0.9}, 'client.momentum=0.9 needs a row'),
  'forensics': ({'forensics': True}, 'eval.forensics compares'),
  'statistics': ({'batch_stats': 'mean'}, "model.batch_stats='mean'"),
  'rule': (
    {'aggregator': lca.stateless(lca.dnc, f=1)},
    'dnc may read all coordinates of all rows',
  ),
  'state': (
    {'aggregator': lca.centered_clip(threshold=1.0)},
    'an aggregator with a state reads',
  ),
  'attack': (
    {'attack': attacks.from_function(attacks.min_max)},
    'the attack reads all coordinates of all rows',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_reads_everything_is_refused(data, name):
  changes, message = REFUSED[name]
  with pytest.raises(ValueError, match=message):
    simulation(data, kind=StreamedSimulation, **changes)


def test_a_metric_that_reads_the_updates_is_refused(data, monkeypatch):
  monkeypatch.setitem(
    METRICS, 'first', lambda result: jax.tree.leaves(result.updates)[0].max()
  )
  sim = simulation(data, kind=StreamedSimulation)
  with pytest.raises(ValueError, match='a metric reads the updates'):
    sim.run_round(sim.init(), 0)


def test_an_unknown_kind_of_reading_is_refused(data):
  attack = attacks.NO_ATTACK._replace(reads='coordinates')
  with pytest.raises(ValueError, match=r"reads must be .* got 'coordinates'"):
    simulation(data, attack=attack, kind=StreamedSimulation)


def test_a_folder_that_takes_no_file_is_told_before_any_work(data, tmp_path):
  (tmp_path / 'file').touch()
  for name in ('file', 'missing'):
    with pytest.raises(ValueError, match=r'cannot be written to .*stream_dir'):
      simulation(
        data,
        kind=functools.partial(StreamedSimulation, folder=tmp_path / name),
      )


def test_a_full_disk_names_its_folder(tmp_path):
  update = {'w': np.zeros(3, np.float32)}
  file = row_file.RowFile(tmp_path, row_file.blocks_of(update, 2, 64), 2)
  with file, mock.patch.object(file, '_file') as broken:
    broken.write.side_effect = OSError(28, 'No space left on device')
    with pytest.raises(OSError, match='No space') as raised:
      file.write(0, {'w': np.ones((2, 3), np.float32)})
  assert raised.value.filename == str(tmp_path)


def test_a_full_disk_is_told_before_any_work(data, monkeypatch):
  monkeypatch.setattr(
    row_file.shutil, 'disk_usage', lambda folder: mock.Mock(free=100)
  )
  simulation(data, kind=StreamedSimulation)  # the mean needs no file
  median = lca.stateless(lca.median)
  with pytest.raises(ValueError, match='GB free, but the updates of a round'):
    simulation(data, aggregator=median, kind=StreamedSimulation)
