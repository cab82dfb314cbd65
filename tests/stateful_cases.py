"""The aggregators with a state, and their oracles."""

import functools

import jax
import numpy as np
import oracles
from cases import params

# name -> its arguments; the name of the function ends at the comma
MADE = {
  'centered_clip': {'threshold': 6.0},
  'centered_clip, three times': {'threshold': 3.0, 'num_iters': 3},
  'adaptive_clip': {'threshold': 3.0},
  'adaptive_clip, fast': {'threshold': 8.0, 'quantile': 0.3, 'rate': 1.0},
  'clipped_clustering': {},
  'crfl': {'sigma': 0.0, 'rho': 4.0, 'growth': 3.0, 'rho_max': 12.0},
  'learned_distance': {'f': 4, 'temperature': 1.0},
  'clipped_clustering, short, at most': {'window': 22, 'threshold': 7.0},
}


def _centered_clip(rows, state, **hyper):
  want, state = oracles.centered_clip(rows, state, **hyper)
  return [want], state


def _adaptive_clip(rows, state, **hyper):
  want, state = oracles.adaptive_clip(rows, state, **hyper)
  return [want], state


def _crfl(rows, state, *, params, **hyper):
  want, state = oracles.crfl(rows, state, params=params, **hyper)
  return [want], state


def _learned_distance(rows, state, **hyper):
  want, state = oracles.learned_distance(rows, state, **hyper)
  return [want], state


def _clipped_clustering(rows, state, **hyper):
  # Cosine distances have an error of some 1e-7.
  choices, factors, state = oracles.clipped_clustering_choices(
    rows, state, slack=1e-6, **hyper
  )
  return [clipped_mean(rows, factors, chosen) for chosen in choices], state


def clipped_mean(rows, factors, chosen):
  """Returns the mean of the chosen rows, each times its factor."""
  weights = oracles.equal_weights(len(rows), np.flatnonzero(chosen))
  if np.any(np.isnan(weights)):
    return np.full(rows.shape[1], np.nan)
  # A row that is clipped to zero still counts in the average.
  return oracles.weighted_sum(rows, weights * factors)


# name -> oracle, a function of a round's rows, the state (None in the first
# round) and the arguments, to the results that rounding allows and the state
ORACLES = {
  'adaptive_clip': _adaptive_clip,
  'centered_clip': _centered_clip,
  'clipped_clustering': _clipped_clustering,
  'crfl': _crfl,
  'learned_distance': _learned_distance,
}


# The tree that the round must bring to an aggregator, shaped like one update.
NEEDS = {'crfl': 'params', 'learned_distance': 'server_update'}

# The error of sums of rounded products, over five rounds.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)


class Oracle:
  """The oracle of an aggregator, with one state for each group of leaves."""

  def __init__(self, form):
    self.name, self.hyper = form[0].split(',')[0], MADE[form[0]]
    self.by = form[1]
    self.states = {}

  def check(self, tree, out):
    arrays = [array for _, array in oracles.leaves(tree)]
    outs = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
    models = jax.tree.leaves(params(tree))
    for group, positions in enumerate(oracles.groups(tree, self.by)):
      rows = oracles.rows_of([arrays[p] for p in positions])
      got = np.concatenate([outs[p].ravel() for p in positions])
      state, brought = self.states.get(group), {}
      if self.name in NEEDS:
        model = np.concatenate([models[p].ravel() for p in positions])
        brought = {NEEDS[self.name]: model.astype(float)}
      wants, self.states[group] = ORACLES[self.name](
        rows, state, **brought, **self.hyper
      )
      gaps = [np.max(np.abs(got - want), initial=0) for want in wants]
      best = wants[int(np.argmin(np.where(np.isnan(gaps), np.inf, gaps)))]
      CLOSE(got, best)
