"""Tests of the optimisers: Algorithm 2 of Reddi et al. in NumPy, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lca.experiment import optimizers


def algorithm_2(kind, deltas, *, lr, b1, b2, tau, v):
  """Computes Algorithm 2 of Reddi et al. 2021, lines 10 to 13, in float64.

  Args:
    kind: 'fedadagrad', 'fedadam' or 'fedyogi'.
    deltas: `[rounds, d]`, the aggregates.
    lr: the learning rate.
    b1: beta_1.
    b2: beta_2.
    tau: tau.
    v: v_{-1}.

  Returns:
    The model after each round, starting from x = 0.
  """
  m, x, path = 0.0, 0.0, []
  for delta in np.asarray(deltas, float):
    m = b1 * m + (1 - b1) * delta
    square = delta * delta
    if kind == 'fedadagrad':
      v = v + square
    elif kind == 'fedyogi':
      v = v - (1 - b2) * square * np.sign(v - square)
    else:
      v = b2 * v + (1 - b2) * square
    x = x + lr * m / (np.sqrt(v) + tau)
    path.append(x)
  return path


DELTAS = [[0.01, -2.0], [0.02, 1e-4], [0.0, 0.3], [-0.5, 0.0], [0.01, -0.01]]


@pytest.mark.parametrize('v', [0.0, 1e-6, 0.04])
@pytest.mark.parametrize('b1', [0.0, 0.9])
@pytest.mark.parametrize('kind', ['fedadagrad', 'fedadam', 'fedyogi'])
def test_algorithm_2(kind, b1, v):
  options = {'b1': b1, 'eps': 1e-3, 'initial_accumulator_value': v}
  if kind != 'fedadagrad':
    options['b2'] = 0.9
  optimizer = optimizers.make(kind, 0.1, **options)
  x = {'w': jnp.zeros(2)}
  state, path = optimizer.init(x), []
  for delta in DELTAS:
    gradient = {'w': -jnp.array(delta)}  # minus the aggregate
    step, state = optimizer.update(gradient, state, x)
    x = optax.apply_updates(x, step)
    path.append(x['w'])
  expected = algorithm_2(kind, DELTAS, lr=0.1, b1=b1, b2=0.9, tau=1e-3, v=v)
  np.testing.assert_allclose(path, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(
  ('kind', 'step'),
  # 0.01 * m / (sqrt(v) + 0.001), by hand: m = 0.01 and v = 1e-4 under Adagrad,
  # m = 0.001 and v = 1e-6 under the other two.
  [('fedadagrad', 1e-4 / 0.011), ('fedadam', 0.005), ('fedyogi', 0.005)],
)
def test_the_first_step_with_the_papers_defaults(kind, step):
  optimizer = optimizers.make(kind, 0.01)
  gradient = jnp.array(-0.01)
  found, _ = optimizer.update(gradient, optimizer.init(gradient))
  np.testing.assert_allclose(found, step, rtol=1e-6)
  if kind == 'fedadagrad':
    assert f'{found:.5f}' == '0.00909'


def test_optaxs_names_are_optaxs():
  for name in ('adagrad', 'adam', 'yogi', 'sgd', 'adadelta'):
    assert optimizers.OPTIMIZERS[name] is getattr(optax, name)


def test_it_goes_through_jit_in_the_dtype_of_the_parameters():
  optimizer = optimizers.make('fedyogi', 0.01)
  params = {'a': jnp.ones(3), 'b': jnp.ones((2, 2))}
  state = optimizer.init(params)
  step, again = jax.jit(optimizer.update)(params, state, params)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  kinds = [
    [(x.shape, x.dtype) for x in jax.tree.leaves(t)] for t in (step, params)
  ]
  assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
  ('arguments', 'options', 'error', 'message'),
  [
    (('fedadan', 1.0), {}, ValueError, "'fedadan'; did you mean 'fedadam'"),
    (('adam', 1.0), {'epz': 1}, TypeError, "takes no epz; did you mean 'eps'"),
    (('adam', 0.0), {}, ValueError, r'^learning_rate must be positive, got 0'),
    (
      ('adam', -1.0),
      {'whose': 'client'},
      ValueError,
      r'^client\.learning_rate must be positive',
    ),
  ],
)
def test_wrong_optimisers(arguments, options, error, message):
  with pytest.raises(error, match=message):
    optimizers.make(*arguments, **options)


def test_one_of_ones_own(monkeypatch):
  def half(learning_rate, *, factor=0.5):
    return optax.sgd(factor * learning_rate)

  known = optimizers.OPTIMIZERS
  monkeypatch.setattr(optimizers, 'OPTIMIZERS', type(known)('optimizer'))
  optimizers.OPTIMIZERS.register(half)
  optimizer = optimizers.make('half', 1.0)
  gradient = jnp.ones(())
  step, _ = optimizer.update(gradient, optimizer.init(gradient))
  assert step == -0.5
