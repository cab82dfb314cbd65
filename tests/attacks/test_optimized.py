"""The attack that optimises its strength against the server's rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import (
  compiled,
  flat,
  flat_update,
  krum_index,
  mask,
  plain,
  sent,
  stack,
  vectors,
)

import lca


def line(direction, honest, strength):
  """Returns the row x(strength) on the line of a direction."""
  mean = honest.mean(axis=0)
  if direction == 'fall_of_empires':
    return -strength * mean
  if direction == 'alie':
    return mean - strength * honest.std(axis=0)
  spread = np.max(np.linalg.norm(honest[:, None] - honest, axis=2))
  return mean - strength * spread * mean / np.linalg.norm(mean)


def as_tree(rows, tree):
  """Returns rows `[n, d]` as a pytree with the shapes of `tree`."""
  leaves, structure = jax.tree.flatten(tree)
  ends = np.cumsum([x[0].size for x in leaves])
  parts = np.split(rows.astype(np.float32), ends[:-1], axis=1)
  shaped = [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(structure, shaped)


RULES = {
  'median': jax.jit(lca.median),
  'layerwise_krum': jax.jit(functools.partial(lca.layerwise(lca.krum), f=3)),
}


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('direction', ['alie', 'fall_of_empires', 'min_max'])
def test_optimized_is_at_least_as_far_as_its_grid(rule, direction):
  aggregate = RULES[rule]
  for seed in range(2):
    tree, byzantine = stack(seed=seed), mask(11, 3, seed)
    rows = flat(tree)
    honest = rows[~byzantine]

    def distance(sent, rows=rows, byzantine=byzantine, tree=tree):
      attacked = rows.copy()
      attacked[byzantine] = sent
      update = flat_update(aggregate(as_tree(attacked, tree)))
      return np.linalg.norm(update - attacked[~byzantine].mean(axis=0))

    grid = 10.0 * 10 ** np.linspace(-3, 0, 8)
    far = [distance(line(direction, honest, s)) for s in grid]
    out = sent(
      'optimized',
      tree,
      byzantine,
      aggregate=aggregate,
      direction=direction,
      num_strengths=8,
    )
    assert distance(out[0]) >= max(far) * (1 - 1e-5)
    assert np.all(out == out[0])


def test_optimized_searches_again_between_the_best():
  """Against Krum, the best row is the farthest that Krum still selects."""
  tree, byzantine = stack(), mask(11, 4)
  rows, rule = flat(tree), functools.partial(lca.krum, f=4)
  honest = rows[~byzantine]
  mean, std = honest.mean(axis=0), honest.std(axis=0)

  def selected(strength):
    attacked = rows.copy()
    attacked[byzantine] = mean - strength * std
    return byzantine[krum_index(attacked, f=4)]

  fine = np.geomspace(0.01, 10, 5000)
  last = max(s for s in fine if selected(s))
  attacked = compiled(
    'optimized', tree, byzantine, aggregate=rule, num_strengths=16
  )
  out = flat(attacked)[byzantine][0]
  strength = np.linalg.norm(out - mean) / np.linalg.norm(std)
  # The first grid steps by factors of 1000 ** (1 / 15). The second grid divides
  # two of these steps into 15, so its strengths are this factor apart.
  assert last / 1000 ** (2 / 15**2) * 0.999 < strength < last * 1.001


def test_against_the_mean_the_largest_strength_is_the_best():
  tree, byzantine = stack(), mask(11, 3)
  honest = flat(tree)[~byzantine]
  for direction in ('alie', 'fall_of_empires', 'min_max'):
    np.testing.assert_allclose(
      sent(
        'optimized',
        tree,
        byzantine,
        aggregate=lca.mean,
        direction=direction,
        max_strength=3.0,
      ),
      np.tile(line(direction, honest, 3.0), (3, 1)),
      rtol=1e-5,
      atol=1e-5,
    )


def test_an_aggregate_that_is_not_finite_is_infinitely_far():
  rows, byzantine = vectors(), mask(11, 3)
  honest = rows[~byzantine].astype(np.float64)
  limit = honest.mean() - 0.5  # a point on the line

  def breaks(updates):
    mean = lca.mean(updates)
    return jnp.where(jnp.mean(updates[byzantine]) < limit, jnp.nan, mean)

  out = sent('optimized', rows, byzantine, aggregate=breaks, num_strengths=9)
  grid = 10.0 * 10 ** np.linspace(-3, 0, 9)
  first = min(s for s in grid if line('alie', honest, s).mean() < limit)
  np.testing.assert_allclose(out[0], line('alie', honest, first), rtol=1e-4)


@pytest.mark.parametrize('batch_size', [3, 50])
def test_trying_several_strengths_at_once_changes_nothing(batch_size):
  leaf, byzantine = vectors(), mask(11, 3)
  np.testing.assert_allclose(
    sent('optimized', leaf, byzantine, num_strengths=16, batch_size=batch_size),
    sent('optimized', leaf, byzantine, num_strengths=16),
    rtol=1e-5,
  )


def test_optimized_needs_the_aggregate():
  with pytest.raises(
    TypeError, match=r'needs a function aggregate .* got None'
  ):
    plain('optimized', stack(), mask(11, 3), aggregate=None)
