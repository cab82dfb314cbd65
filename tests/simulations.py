"""A small simulation that several tests share."""

import optax

import lca
from lca.federated.clients import LocalTraining
from lca.federated.placement import Placement, clients_mesh
from lca.federated.population import Population
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.models import CNN, Classifier

CLASSIFIER = Classifier(CNN(10, features=(2, 3), hidden=(4,)), (8.0,), (8.0,))
TRAIN = LocalTraining(
  losses=CLASSIFIER.losses,
  optimizer=optax.sgd(0.05),
  batch_size=8,
  local_epochs=1,
)
POPULATION = Population(
  num_clients=12, clients_per_round=7, num_attackers=4, num_byzantine=2
)


def simulation(data, *devices, kind=Simulation, **changes):
  """Returns a simulation; see `parts`."""
  return kind(**parts(data, *devices, **changes))


def parts(
  data,
  devices=1,
  chunk_size=1,
  eval_batch_size=50,
  population=POPULATION,
  classifier=CLASSIFIER,
  train=TRAIN,
  seed=3,
  attackers=None,
  by_class=False,
  **changes,
):
  """Returns a simulation's parts; `changes` replace those of its server."""
  server = {
    'aggregator': lca.stateless(lca.mean, weights=None),
    'optimizer': optax.sgd(1.0),
  }
  return {
    'data': data,
    'population': population,
    'classifier': classifier,
    'train': train,
    'server': Server(**(server | changes)),
    'seed': seed,
    'attackers': attackers,
    'by_class': by_class,
    'placement': Placement(clients_mesh(devices), chunk_size, eval_batch_size),
  }
