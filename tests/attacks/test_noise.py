"""Attacks that send noise or constants."""

import functools
import re

import jax
import numpy as np
import pytest
from attack_cases import compiled, flat, mask, plain, sent, stack


def test_gaussian_rows_are_independent_normals():
  tree = {'a': np.ones((5, 40_000), np.float32), 'b': np.ones((5, 10_000))}
  byzantine = np.array([False, True, False, True, True])
  rows = sent('gaussian', tree, byzantine, mu=3.0, sigma=20.0)
  draws = (rows - 3) / 20
  # The bound is five standard deviations of the mean, which are also those of a
  # correlation. Those of the variance are sqrt(2) times as large.
  bound = 5 / np.sqrt(draws.shape[1])
  assert np.all(np.abs(draws.mean(axis=1)) < bound)
  assert np.all(np.abs(draws.var(axis=1) - 1) < np.sqrt(2) * bound)
  assert np.all(np.abs(np.corrcoef(draws)[np.triu_indices(3, 1)]) < bound)
  assert abs(np.mean(np.abs(draws) < 0.6744898) - 0.5) < 0.5 * bound
  a, b = draws[:, :10_000], draws[:, 40_000:]
  assert abs(np.mean(a * b)) < 5 / np.sqrt(a.size)  # leaves are independent


def test_gaussian_depends_on_the_key():
  tree, byzantine = stack(), mask(11, 3)
  first, again, other = (
    flat(compiled('gaussian', tree, byzantine, jax.random.key(seed)))[byzantine]
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.all(first != other)


def test_gaussian_in_some_layers_alone():
  tree, byzantine = stack(), mask(11, 3)
  out = compiled('gaussian', tree, byzantine, layers='_0/kern|bias$')['params']
  same = np.testing.assert_array_equal
  same(out['scale'], tree['params']['scale'])
  new, old = out['Conv_0']['kernel'], tree['params']['Conv_0']['kernel']
  same(new[~byzantine], old[~byzantine])
  assert np.all(new[byzantine] != old[byzantine])
  with pytest.raises(ValueError, match=r'params/Conv_0/kernel'):
    plain('gaussian', tree, byzantine, layers='params/Conv_1')


def test_gaussian_draws_for_the_attackers_alone():
  jaxpr = str(
    jax.make_jaxpr(functools.partial(plain, 'gaussian'))(
      np.zeros((25, 1000), np.float32), mask(25, 4)
    )
  )
  assert re.search(r'f32\[1000\] = erf_inv', jaxpr)
  assert not re.search(r'f32\[25,1000\] = erf_inv', jaxpr)


def test_constants():
  tree, byzantine = stack(), mask(11, 3)
  np.testing.assert_array_equal(sent('zero', tree, byzantine), 0)
  np.testing.assert_array_equal(
    sent('constant', tree, byzantine, value=7.5), 7.5
  )
  for value in ('nan', 'inf', '-inf'):
    np.testing.assert_array_equal(
      sent('non_finite', tree, byzantine, value=value), float(value)
    )
