"""Rows found by gradient ascent through the server's rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import KEY, flat, flat_update, mask, stack

import lca
from lca import attacks

BYZANTINE = mask(11, 3)
RULES = {
  'mean': lca.mean,
  'median': lca.median,
  'trimmed_mean': functools.partial(lca.trimmed_mean, f=3),
  'geometric_median': lca.geometric_median,
  'krum': functools.partial(lca.krum, f=3),
  'layerwise': functools.partial(lca.layerwise(lca.krum), f=3),
}


def moved(rule, rows):
  """Returns how far a rule's aggregate is from the honest mean."""
  mean = flat(stack())[~BYZANTINE].mean(axis=0)
  return np.linalg.norm(flat_update(rule(rows)) - mean)


@pytest.mark.parametrize('name', RULES)
def test_it_does_more_harm_than_the_attacks_that_it_starts_from(name):
  rule, tree = RULES[name], stack()
  attack = jax.jit(
    functools.partial(
      attacks.white_box, byzantine=BYZANTINE, key=KEY, aggregate=rule
    )
  )
  sent = attack(tree)
  np.testing.assert_array_equal(flat(sent)[~BYZANTINE], flat(tree)[~BYZANTINE])
  alie = attacks.alie(tree, byzantine=BYZANTINE, z=1.0)
  foe = attacks.fall_of_empires(tree, byzantine=BYZANTINE, epsilon=1.0)
  simple = max(moved(rule, rows) for rows in (tree, alie, foe))
  assert moved(rule, sent) > 1.03 * simple


def test_the_inner_product_is_made_small():
  """Against the geometric median, beyond Fall of Empires."""
  tree, mean = stack(), flat(stack())[~BYZANTINE].mean(axis=0)
  sent = attacks.white_box(
    tree,
    byzantine=BYZANTINE,
    key=KEY,
    aggregate=lca.geometric_median,
    objective='inner_product',
  )
  foe = attacks.fall_of_empires(tree, byzantine=BYZANTINE, epsilon=1.0)
  products = [
    flat_update(lca.geometric_median(rows)) @ mean for rows in (sent, foe)
  ]
  assert products[0] < products[1]


def test_the_objective_may_be_a_function_of_the_aggregate():
  """One coordinate of the mean rises by as much as all steps reach."""
  rows = jnp.zeros((4, 2)).at[:3].set(jnp.array([[1.0, 0], [-1, 0], [0, 0]]))
  sent = attacks.white_box(
    rows,
    byzantine=jnp.arange(4) == 3,
    key=KEY,
    aggregate=lca.mean,
    objective=lambda update: update[1],
    num_steps=10,
    step_size=2.0,
  )
  spread = (2 / 3) ** 0.5
  assert sent[3, 1] == pytest.approx(10 * 2 * spread, rel=0.01)


def test_impossible_options():
  attack = functools.partial(
    attacks.white_box, stack(), byzantine=BYZANTINE, key=KEY
  )
  with pytest.raises(ValueError, match=r"objective must be .* 'angle'"):
    attack(aggregate=lca.mean, objective='angle')
  with pytest.raises(TypeError, match="a function loss with objective='loss'"):
    attack(aggregate=lca.mean, objective='loss')
  with pytest.raises(ValueError, match='num_steps must be at least 1'):
    attack(aggregate=lca.mean, num_steps=0)
  with pytest.raises(TypeError, match='needs a function aggregate'):
    attack(aggregate=None)
