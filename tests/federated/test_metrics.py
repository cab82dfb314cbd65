"""Metrics have a fixed order and names, and users can add some."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca.experiment.rundir import COLUMNS
from lca.federated import metrics
from lca.federated.round import server_step
from lca.federated.server import Round, Sent, Server, server_init


def step():
  """Takes one step of a server; returns the state and the metrics."""
  variables = {'params': jnp.zeros(2)}
  server = Server(
    aggregator=lca.stateless(lca.median), optimizer=optax.sgd(1.0)
  )
  state = server_init(server, variables, variables, num_clients=3)
  updates = {'params': jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])}
  return server_step(
    server,
    state,
    Sent(updates, jnp.zeros(3)),
    Round(np.arange(3), np.zeros(3, bool), np.ones(3, np.int32), None, None),
  )


def test_the_metrics_of_every_run_are_columns_of_every_run():
  _, measured = step()
  assert tuple(measured)[: len(metrics.ALWAYS)] == metrics.ALWAYS
  assert set(metrics.ALWAYS) < set(COLUMNS)


def test_the_columns_beside_them_keep_their_order():
  more = [name for name in metrics.METRICS if name not in metrics.ALWAYS]
  published = ['dropped', 'floored', 'norm', 'factor']
  assert more[: len(published)] == published


def test_a_metric_from_outside_is_one_more_column(monkeypatch):
  def longest(result):
    return jnp.max(jnp.linalg.norm(result.updates['params'], axis=1))

  monkeypatch.setitem(metrics.METRICS, 'longest', longest)
  _, measured = step()
  assert list(measured)[-1] == 'longest'
  assert measured['longest'] == 5.0


def test_a_metric_that_is_no_number_is_an_error():
  with pytest.raises(ValueError, match=r"'norms' has the shape \(3,\)"):
    metrics.columns({'norms': jnp.zeros(3)}, [])
