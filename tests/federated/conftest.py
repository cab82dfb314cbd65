"""The data of the small simulation that tests share."""

import jax
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


@pytest.fixture
def compiled():
  """Returns a list that gets an entry for each program that is compiled."""
  events = []

  def listen(event, seconds, **_):
    if event.endswith('backend_compile_duration'):
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return events
