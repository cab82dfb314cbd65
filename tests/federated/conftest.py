"""The data of the small simulation that tests share."""

import pytest
from simulations import POPULATION

from lca import data as datasets


@pytest.fixture(scope='module')
def data():
  return datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=POPULATION.num_clients,
    min_examples=1,
    seed=3,
  )
