"""Tests of RFLBAT."""

import jax
import numpy as np
import oracles
import pytest

import lca

explain = jax.jit(
  lca.explain(lca.rflbat),
  static_argnames=['epsilon_1', 'epsilon_2', 'max_clusters'],
)


def selected(x, **hyper):
  return np.flatnonzero(explain(x, **hyper)[1]['selected']).tolist()


# Steps ---------------------------------------------------------------------


def two_groups(seed=0, n=24, bad=8, scale=1.0):
  """Returns honest updates, and such with a backdoor in common.

  The honest ones have little in common, as from clients with different data.
  """
  rng = np.random.default_rng(seed)
  common, backdoor = rng.normal(size=(2, 400))
  x = 0.3 * common + rng.normal(size=(n, 400))
  rows = rng.permutation(n)[:bad]
  x[rows] = scale * (3 * backdoor + rng.normal(size=(bad, 400)))
  return x.astype(np.float32), rows


def test_a_far_client_is_dropped_before_the_clusters():
  """Its sum of distances is n - 1 times that of the others: above 10 medians.

  With a larger bound it is a cluster of its own, which is kept last.
  """
  x, bad = two_groups()
  honest = np.setdiff1d(np.arange(24), bad)
  x[honest[0]] *= 500
  for bound in (10.0, 1e6):
    assert honest[0] not in selected(x, epsilon_1=bound)
  want = oracles.rflbat_members(x.astype(float))
  assert selected(x) == want.tolist()


def test_clients_far_from_their_cluster_are_dropped():
  x, bad = two_groups()
  honest = np.setdiff1d(np.arange(24), bad)
  sizes = [len(selected(x, epsilon_2=bound)) for bound in (1.0, 1.2, 4.0)]
  # At one median of the sums, half of the cluster remains.
  assert sizes[0] == len(honest) / 2 <= sizes[1] <= sizes[2] == len(honest)


def test_one_cluster_keeps_everybody_near():
  x, _ = two_groups()
  assert len(selected(x, max_clusters=1)) == 24


@pytest.mark.parametrize('n', [1, 2, 3])
def test_few_clients(n):
  x = np.random.default_rng(n).normal(size=(n, 20)).astype(np.float32)
  want = oracles.rflbat_members(x.astype(float))
  assert selected(x) == want.tolist()


# Attacks -------------------------------------------------------------------


@pytest.mark.parametrize('scale', [0.5, 1.0, 10.0])
def test_a_backdoor_in_common_is_left_out(scale):
  """Eight of 24 clients share a backdoor; their updates may be scaled."""
  for seed in range(5):
    x, bad = two_groups(seed, scale=scale)
    kept = selected(x)
    assert len(kept) >= 5 and not {*kept} & {*bad.tolist()}


def test_layers_have_their_own_clusters():
  tree = {name: two_groups(seed)[0] for seed, name in enumerate('ab')}
  _, info = jax.jit(lca.explain(lca.layerwise(lca.rflbat)))(tree)
  for mask, x in zip(info['selected'], tree.values(), strict=True):
    assert np.flatnonzero(mask).tolist() == selected(x)
