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


def detection(selected, byzantine, answered=None):
  """Returns the four metrics of a round, and their float64 definitions."""
  result = metrics.RoundResult(
    **dict.fromkeys(metrics.RoundResult._fields)
    | {
      'info': {'selected': jnp.array(selected)},
      'byzantine': jnp.array(byzantine),
      'answered': None if answered is None else jnp.array(answered),
      'detection': True,
    }
  )
  names = (
    *('detection_precision', 'detection_recall', 'detection_f1'),
    'false_positive_rate',
  )
  return [float(metrics.METRICS[name](result)) for name in names]


def test_detection_is_that_of_the_clients_left_out():
  """Two of three attackers are left out, and one of four honest clients."""
  selected = [True, False, False, False, True, True, True]
  byzantine = [True, True, True, False, False, False, False]
  np.testing.assert_allclose(
    detection(selected, byzantine), [2 / 3, 2 / 3, 2 / 3, 1 / 4]
  )
  # An attacker that was left out and an honest client did not answer.
  answered = [True, False, True, True, False, True, True]
  np.testing.assert_allclose(
    detection(selected, byzantine, answered), [1 / 2, 1 / 2, 1 / 2, 1 / 3]
  )
  # By layer: a second layer takes everybody.
  np.testing.assert_allclose(
    detection([selected, [True] * 7], byzantine),
    [2 / 3, 2 / 6, 2 * 2 / (3 + 6), 1 / 8],
  )


def test_detection_without_attackers_or_without_a_choice():
  everybody, nobody = [True] * 3, [False] * 3
  np.testing.assert_array_equal(
    detection([True, False, True], nobody),
    [np.nan, np.nan, np.nan, np.float32(1 / 3)],
  )
  np.testing.assert_array_equal(
    detection(everybody, nobody), [np.nan, np.nan, np.nan, 0]
  )
  np.testing.assert_array_equal(
    detection(everybody, [True, False, False]), [np.nan, 0, 0, 0]
  )
