"""The memory that a round needs, and the advice if it does not fit."""

import functools
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca import data as datasets
from lca.experiment import host, train
from lca.federated import plan
from lca.federated.clients import LocalTraining
from lca.federated.placement import (
  Placement,
  blank_results,
  clients_mesh,
  train_clients,
)
from lca.federated.population import Population
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.models import CNN, Classifier, EfficientNet

ROOT = pathlib.Path(__file__).parents[2]

# Dense layers alone, 64 x 6 and 6 x 10, which compile in a moment.
CLASSIFIER = Classifier(CNN(10, features=(), hidden=(6,)), (8.0,), (8.0,))
TRAIN = LocalTraining(
  losses=CLASSIFIER.losses,
  optimizer=optax.adam(1e-3),
  batch_size=16,
  local_epochs=1,
)
PARAMETERS = (384 + 6) + (60 + 10)
EXAMPLES = 90  # of the client that holds most
CLIENTS = 9  # in a round


@pytest.fixture(scope='module')
def data():
  return datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=16,
    min_examples=1,
    seed=0,
  )


def simulation(data, devices, chunk_size):
  return Simulation(
    data=data,
    population=Population(16, CLIENTS),
    classifier=CLASSIFIER,
    train=TRAIN,
    server=Server(
      aggregator=lca.legato(window=3, normalize='max'),
      optimizer=optax.sgd(1.0, momentum=0.9),
    ),
    seed=0,
    placement=Placement(clients_mesh(devices), chunk_size, eval_batch_size=90),
  )


@pytest.fixture(scope='module')
def four(data):
  """Four devices train three clients each: nine, and three without examples."""
  return simulation(data, devices=4, chunk_size=3)


@pytest.fixture(scope='module')
def one(data):
  return simulation(data, devices=1, chunk_size=CLIENTS)


def test_sizes_on_four_devices(four, data):
  needed = plan.of(four)
  assert needed.model == 4 * PARAMETERS
  assert data.max_examples == EXAMPLES
  images = 3 * EXAMPLES * (64 + 4)
  assert needed.examples == 2 * images + 360 * (64 + 4) // 4
  assert needed.updates == 3 * 4 * PARAMETERS
  # A device has a quarter of each leaf with an axis that four divides, and all
  # of every other leaf. The model and the momentum are of this size.
  share = 4 * (384 // 4 + 6 + 60 + 10)
  assert needed.state == 2 * share
  # LEGATO keeps two past rounds, norms [3, 4], a count and factors [4].
  assert needed.rule == 2 * share + 3 * 4 + 4 + 4
  assert needed.resident == sum(needed[:5])
  assert needed.total == needed.resident + max(needed.training, needed.server)
  assert str(needed).startswith('each device holds ')


def test_what_xla_says_of_the_round_as_it_runs(four, data):
  """The plan agrees with the program that real arrays compile to."""
  rows = data.gather(range(12))
  key = jax.random.key(0)
  variables = CLASSIFIER.init(key, data.dataset.train.input_spec)
  mesh = four.placement.mesh
  lowered = train_clients(TRAIN, mesh, 3).lower(
    variables,
    rows,
    np.arange(12, dtype=np.int32),
    key,
    *blank_results(mesh, variables, 12)(),
    *np.int32([0, 1]),
  )
  used = lowered.compile().memory_analysis()
  needed = plan.of(four)
  assert needed.training == used.temp_size_in_bytes
  # The other arguments are the updates, which are overwritten in place; three
  # numbers of examples, ids and losses; a key, and two bounds.
  images = (needed.examples - 360 * (64 + 4) // 4) // 2
  assert used.argument_size_in_bytes == (
    needed.model + images + needed.updates + 3 * 12 + 8 + 2 * 4
  )
  assert used.alias_size_in_bytes == needed.updates


def test_a_simulation_runs_what_was_planned(four, monkeypatch):
  def lowered_again(self, chunk_size):
    raise AssertionError(chunk_size)

  four.programs  # noqa: B018
  monkeypatch.setattr(Simulation, 'lower_training', lowered_again)
  state = four.init()
  for round_idx in range(2):
    state, _ = four.run_round(state, round_idx)
  places = jax.tree.map(lambda x: x.sharding, state)
  assert places == jax.tree.map(lambda x: x.sharding, four.abstract_state)
  assert int(state.aggregator.count) == 2


def chunk_size_of(error):
  return int(re.search(r'parallel\.chunk_size=(\d+) fits', str(error.value))[1])


def test_the_chunk_size_that_is_named_fits(one):
  needed = plan.check(one, limit=np.inf)
  limit = needed.resident + max(needed.server, 0.6 * needed.training)
  with pytest.raises(ValueError, match='does not fit into the') as error:
    plan.check(one, limit)
  chunk_size = chunk_size_of(error)
  assert 1 < chunk_size < CLIENTS
  used = one.lower_training(chunk_size).compile().memory_analysis()
  assert needed.resident + used.temp_size_in_bytes <= limit


def test_no_chunk_size_fits(one):
  resident = plan.of(one).resident
  with pytest.raises(ValueError, match=r'no parallel\.chunk_size fits'):
    plan.check(one, resident)


def test_a_compiler_that_refuses(data, one, monkeypatch):
  """Imitates the compiler for TPUs, which raises RESOURCE_EXHAUSTED."""
  lower_training = Simulation.lower_training

  def refused(self, chunk_size):
    if chunk_size == CLIENTS:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory')
    return lower_training(self, chunk_size)

  needed = plan.of(one)
  monkeypatch.setattr(Simulation, 'lower_training', refused)
  other = simulation(data, devices=1, chunk_size=CLIENTS)
  alone = (
    lower_training(other, 1).compile().memory_analysis().temp_size_in_bytes
  )
  with pytest.raises(ValueError, match='more than there is') as error:
    plan.check(other, needed.resident + max(needed.server, 3.5 * alone))
  assert 1 < chunk_size_of(error) <= 3


def test_virtual_devices_share_the_host():
  whole = plan.memory_limit(clients_mesh(1))
  assert 2**28 < whole < np.inf
  assert plan.memory_limit(clients_mesh(4)) == whole / 4


@pytest.mark.parametrize(
  ('content', 'limit'), [('1048576\n', 2**20), ('max\n', None), (None, None)]
)
def test_a_cgroup_may_grant_less_than_the_machine(
  tmp_path, monkeypatch, content, limit
):
  monkeypatch.setattr(plan, '_CGROUP_LIMITS', ())
  machine = plan.memory_limit(clients_mesh(1))
  files = [tmp_path / 'memory.max', tmp_path / 'none']
  monkeypatch.setattr(plan, '_CGROUP_LIMITS', files)
  if content is not None:
    files[0].write_text(content)
  assert plan.memory_limit(clients_mesh(4), jobs=2) == (limit or machine) / 8


def test_jobs_share_the_machine(monkeypatch):
  taken, names = set(), host._GPU_SHARES
  for name in names:  # monkeypatch restores them after the test
    monkeypatch.setenv(name, '')
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {3, 5, 7})
  monkeypatch.setattr(os, 'sched_setaffinity', lambda _, own: taken.update(own))
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  host.use_all_cores(1, 2)
  assert taken == {5} and os.environ[names[0]] == '0.375'
  host.use_all_cores(0, 4)
  assert os.environ[names[0]] == '0.375'  # a value that is set stays
  mesh = clients_mesh(2)
  assert plan.memory_limit(mesh, 3) == pytest.approx(
    plan.memory_limit(mesh) / 3
  )


def test_a_run_that_does_not_fit_is_an_error_before_it_starts(
  tmp_path, monkeypatch
):
  from run_files import config

  monkeypatch.setattr(plan, 'memory_limit', lambda mesh, jobs: 1000.0)
  with pytest.raises(ValueError, match='into the 1 kB of a device'):
    train.set_up(config('fedavg', **{'model.features': ()}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_on_paper_is_about_what_xla_says(one):
  needed = plan.of(one)
  on_paper = plan.on_paper(
    clients=CLIENTS,
    parameters=PARAMETERS,
    examples=EXAMPLES,
    example_bytes=64 + 4,
    test_examples=360,
    devices=1,
    chunk_size=CLIENTS,
    batch_size=16,
    activation_bytes=activation_bytes(CLASSIFIER, (8, 8, 1)),
    server_models=2,
    rule_updates=2,
  )
  print(needed, on_paper, sep='\n')
  assert on_paper[:4] == needed[:4]
  # The estimate leaves out LEGATO's norms and factors.
  assert needed.rule - 200 < on_paper.rule < needed.rule
  # The compiler adds temporaries, and keeps some arrays twice.
  assert needed.training / 3 < on_paper.training < 2 * needed.training


def test_nothing_on_paper():
  with pytest.raises(ValueError, match='got 3, 0 and 1'):
    plan.on_paper(
      clients=3, parameters=1, examples=1, example_bytes=1, devices=0
    )


def of_pixels(shape):
  """Returns the input spec of uint8 images."""
  return jax.ShapeDtypeStruct(shape, np.uint8)


def activation_bytes(classifier, shape):
  """Returns the bytes that the forward pass keeps of an image in training."""
  key = jax.random.key(0)
  variables = jax.eval_shape(lambda: classifier.init(key, of_pixels(shape)))

  def residuals(variables, images):
    labels = jnp.zeros(len(images), jnp.int32)
    keys = jax.random.split(key, len(images))

    def loss(params):
      losses, _ = classifier.losses(
        {**variables, 'params': params}, images, labels, keys, labels == 0
      )
      return jnp.sum(losses)

    return jax.vjp(loss, variables['params'])[1]

  def kept(batch_size):
    images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8)
    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables, images))
    return sum(x.size * x.dtype.itemsize for x in leaves)

  return kept(9) - kept(8)


SIZES = {
  'cnn': (Classifier(CNN(10), (1.0,), (1.0,)), (28, 28, 1)),
  'efficientnet': (
    Classifier(EfficientNet(10), (1.0,) * 3, (1.0,) * 3, resize=256, crop=224),
    (32, 32, 3),
  ),
}


@pytest.mark.parametrize(
  ('row', 'name'),
  [(0, 'cnn'), pytest.param(3, 'efficientnet', marks=pytest.mark.thorough)],
)
def test_the_networks_of_the_guide(row, name):
  classifier, shape = SIZES[name]
  init = functools.partial(classifier.init, input_spec=of_pixels(shape))
  leaves = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
  row = table()[row]
  assert row['parameters'] == f'{sum(x.size for x in leaves):,}'
  kept = activation_bytes(classifier, shape)
  assert row['batch'] == f'256 of {kept:,} B'


def table():
  """Returns the rows of the README's table of plans, as dicts by column."""
  text = (ROOT / 'docs' / 'memory.md').read_text()
  head, _, *rows = re.search(r'(\| setting .*\n)(\|.*\n)+', text)[
    0
  ].splitlines()

  def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]

  return [dict(zip(cells(head), cells(row), strict=True)) for row in rows]


@pytest.mark.parametrize('row', table(), ids=lambda row: row['setting'])
def test_the_rows_of_the_guide(row):
  def numbers(column):
    return [int(n.replace(',', '')) for n in re.findall(r'[\d,]+', row[column])]

  (clients,), (parameters,) = numbers('clients'), numbers('parameters')
  (devices,), (chunk_size,) = numbers('devices'), numbers('chunk')
  examples, example_bytes = numbers('examples')
  batch_size, activation_bytes = numbers('batch')
  needed = plan.on_paper(
    clients=clients,
    parameters=parameters,
    examples=examples,
    example_bytes=example_bytes,
    devices=devices,
    chunk_size=chunk_size,
    batch_size=batch_size,
    activation_bytes=activation_bytes,
    update_bytes=jnp.dtype(row['updates in']).itemsize,
  )
  names = ('model', 'updates', 'training', 'server', 'total', 'sent')
  got = {name: plan.size(getattr(needed, name)) for name in names}
  got['examples, twice'] = plan.size(needed.examples)
  assert {name: row[name] for name in got} == got
