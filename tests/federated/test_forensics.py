"""The evidence of a round, on numbers that NumPy works out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca.federated.round import server_step
from lca.federated.server import Round, Sent, Server, server_init

pytestmark = pytest.mark.quick

N = 7
BYZANTINE = np.arange(N) == 2
SHAPES = {'A': {'kernel': (3, 2), 'bias': (2,)}, 'B': {'kernel': (4,)}}
SHAPES |= {'C': {'kernel': (5,)}}
LEAVES = 4


def updates(seed=0):
  """Returns seven clients' updates of four leaves; client 2's are long."""
  rng = np.random.default_rng(seed)
  tree = jax.tree.map(
    lambda shape: rng.normal(1, 0.5, (N, *shape)).astype(np.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  for leaf in jax.tree.leaves(tree):
    leaf[2] *= 30
  return {'params': tree}


def evidence(aggregator, sent, answered=None):
  """Takes one step, and returns its evidence and the aggregate's leaves."""
  variables = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), sent)
  server = Server(
    aggregator=aggregator, optimizer=optax.sgd(1.0), forensics=True
  )
  drawn = Round(
    np.arange(N), BYZANTINE, np.ones(N, np.int32), None, None, answered
  )
  state = server_init(server, variables, variables, num_clients=N)
  step = jax.jit(functools.partial(server_step, server))
  state, measured = step(state, Sent(sent, jnp.zeros(N)), drawn)
  return measured['forensics'], jax.tree.leaves(state.variables)


def rows(tree):
  """Returns the leaves as `[N, columns]` in float64."""
  return [np.asarray(x, float).reshape(N, -1) for x in jax.tree.leaves(tree)]


def test_norms_distances_and_angles_are_those_of_every_leaf():
  sent = updates()
  found, aggregate = evidence(lca.stateless(lca.median), sent)
  assert 'weights' not in found and 'selected' not in found
  for k, (x, a) in enumerate(zip(rows(sent), aggregate, strict=True)):
    a, h = np.ravel(a), x[~BYZANTINE].mean(0)
    length = np.linalg.norm
    expected = {
      'norms': length(x, axis=1),
      'distances': length(x - h, axis=1),
      'cos_aggregate': x @ a / length(x, axis=1) / length(a),
      'cos_honest': x @ h / length(x, axis=1) / length(h),
      'aggregate_norm': length(a),
      'honest_norm': length(h),
      'gap': length(a - h),
    }
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][k], value, rtol=1e-5, err_msg=name)


def test_weights_are_those_that_give_the_aggregate():
  sent = updates()
  rule = lca.layerwise(lca.cosine(lca.krum))
  found, aggregate = evidence(lca.stateless(rule, f=1), sent)
  assert found['selected'].sum(1).tolist() == [1] * LEAVES
  for w, x, a in zip(found['weights'], rows(sent), aggregate, strict=True):
    np.testing.assert_allclose(np.asarray(w, float) @ x, np.ravel(a), rtol=1e-5)


@pytest.mark.parametrize('by', ['leaf', 'module', 'block', 'model'])
def test_every_leaf_has_the_decision_of_its_layer(by):
  sent = updates(3)
  rule = lca.layerwise(lca.krum, by=by)
  found, aggregate = evidence(lca.stateless(rule, f=1), sent)
  for chosen, x, a in zip(
    found['selected'], rows(sent), aggregate, strict=True
  ):
    np.testing.assert_allclose(x[np.argmax(chosen)], np.ravel(a), rtol=1e-6)


def test_layers_without_a_name_are_an_error():
  rule = lca.layerwise(lca.krum, by=lambda path: path[-1])
  with pytest.raises(ValueError, match='reports on 2 layers'):
    evidence(lca.stateless(rule, f=1), updates())


def test_bad_and_missing_rows_are_no_part_of_the_honest_mean():
  sent = updates()
  jax.tree.leaves(sent)[1][4] = np.nan  # client 4 sends NaN in one leaf
  answered = np.arange(N) != 5
  found, _ = evidence(lca.stateless(lca.krum, f=1), sent, answered)
  counted = [0, 1, 3, 6]
  for k, x in enumerate(rows(sent)):
    h = x[counted].mean(0)
    np.testing.assert_allclose(
      found['distances'][k][jnp.array(counted)],
      np.linalg.norm(x[counted] - h, axis=1),
      rtol=1e-5,
    )
  assert np.isinf(found['norms'][1, 4]) and np.isinf(found['distances'][1, 4])
  assert np.isnan(found['cos_honest'][1, 4])
  assert np.isfinite(found['norms'][0, 4])
  assert found['rejected'].all(0).tolist() == [False] * 4 + [True, True, False]
  assert found['answered'].tolist() == answered.tolist()


def test_a_choice_among_mixed_rows_is_not_a_choice_of_clients():
  rule = lca.chain(lca.nnm, lca.bulyan)
  found, _ = evidence(lca.stateless(rule, f=1), updates())
  assert 'selected' not in found
  # The weights of a chain of sums are those of the clients' own rows.
  rule = lca.chain(lca.nnm, lca.krum)
  found, aggregate = evidence(lca.stateless(rule, f=1), updates())
  (a, *_), (x, *_) = aggregate, rows(updates())
  np.testing.assert_allclose(found['weights'][0] @ x, np.ravel(a), rtol=1e-5)


def test_without_forensics_there_is_no_evidence_and_no_pass_for_it():
  def size(forensics):
    server = Server(
      aggregator=lca.stateless(lca.median),
      optimizer=optax.sgd(1.0),
      forensics=forensics,
    )
    sent = updates()
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), sent)
    state = server_init(server, variables, variables, num_clients=N)
    drawn = Round(np.arange(N), BYZANTINE, np.ones(N, np.int32), None, None)
    step = jax.jit(functools.partial(server_step, server))
    lowered = step.lower(state, Sent(sent, jnp.zeros(N)), drawn)
    return len(lowered.as_text()), lowered.out_info[1]

  (off, metrics), (on, _) = size(False), size(True)
  assert 'forensics' not in metrics
  assert off < 0.7 * on
