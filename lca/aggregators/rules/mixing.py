"""Pre-aggregators that mix the clients' rows before a rule sees them."""

import jax
import jax.numpy as jnp

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import (
  average,
  check_integers,
  check_majority,
  select_lowest,
)
from lca.stacked import geometry
from lca.typing import Gram


@gram_rule
def nnm(
  gram: Gram,
  *,
  f: int,
  distance: geometry.Distance = 'euclidean',
) -> Verdict:
  r"""Nearest-neighbour mixing: replaces each update by its neighbours' mean.

  .. math:: y_i = \frac{1}{n - f} \sum_{j \in N_i} x_j

  where :math:`N_i` holds i itself and the n - f - 1 clients nearest to i. A
  rule that withstands f arbitrary clients still does so after `nnm`.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are in no
  :math:`N_i`; if fewer than n - f rows are left, those are averaged.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    distance: `'euclidean'`, `'cosine'`, or another (`lca.distances`).

  Returns:
    Stacked updates of the same structure and dtypes. Rejected rows are NaN.

  Raises:
    ValueError: unless f >= 0 and n > 2f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.nnm(jnp.array([[1.], [2.], [9.]]), f=1)[:, 0])
    [1.5 1.5 5.5]

  References:
    Allouah et al., Fixing by mixing: a recipe for optimal Byzantine ML under
    heterogeneity, AISTATS 2023.
  """
  n = len(gram)
  check_majority('nnm', n, f)
  distances = geometry.distances(gram, distance)
  # A client is its own nearest neighbour, also beside equal rows.
  distances = jnp.where(jnp.eye(n, dtype=bool), -1, distances)
  neighbours = jax.vmap(lambda row: select_lowest(gram, row, n - f).weights)
  rejected = geometry.rejected_rows(gram)
  return Verdict(jnp.where(rejected[:, None], jnp.nan, neighbours(distances)))


@gram_rule(needs='norms')
def bucketing(gram: Gram, *, key: jax.Array, bucket_size: int = 2) -> Verdict:
  r"""Averages the clients in random buckets, which reduces their differences.

  .. math:: y_j = \frac{1}{s} \sum_{i=(j-1)s+1}^{\min(n, js)} x_{\pi(i)}

  with a random permutation :math:`\pi`. The last bucket may be smaller, and is
  divided by its own size. At most f buckets contain a Byzantine client.

  Rejected rows (see `lca.geometry`) are left out of their buckets; a bucket
  that contains only rejected rows becomes NaN.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    key: PRNG key of the permutation.
    bucket_size: number s of clients in a bucket.

  Returns:
    Stacked updates of the same structure and dtypes, `[ceil(n / s), ...]`.

  Raises:
    ValueError: unless 1 <= bucket_size <= n.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [1.], [1.], [1.], [1.]])
    >>> print(lca.bucketing(updates, key=jax.random.key(0))[:, 0])
    [1. 1. 1.]

  References:
    Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous
    datasets via bucketing, ICLR 2022.
  """
  n = len(gram)
  check_integers('bucketing', bucket_size=bucket_size)
  if not 1 <= bucket_size <= n:
    raise ValueError(
      f'bucketing needs 1 <= bucket_size <= n, got n={n}, '
      f'bucket_size={bucket_size}'
    )
  place = jnp.argsort(jax.random.permutation(key, n))  # position of each client
  buckets = jnp.arange(-(-n // bucket_size))
  members = place // bucket_size == buckets[:, None]
  return Verdict(jax.vmap(lambda row: average(gram, row).weights)(members))
