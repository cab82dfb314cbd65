"""Rules that part the clients in two clusters and trust the larger one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  FunctionRule,
  Info,
)
from lca.aggregators.rules.clipping import check_threshold
from lca.aggregators.rules.selection import average, check_integers
from lca.stacked import geometry, sums
from lca.typing import Update, Updates

_ROUNDING = 8  # times eps: so far apart are averages that would be equal


def larger_cluster(distances: jax.Array, absent: jax.Array) -> jax.Array:
  """The larger of two clusters by average linkage.

  Clusters whose members are the least far apart on average are joined until
  two are left; in a tie, which rounding does not break, those that hold the
  lowest index.

  Args:
    distances: `[n, n]`.
    absent: `[n]` mask of the clients in no cluster.

  Returns:
    `[n]` mask of its members; of two that are equally large, the one that
    holds the lowest index.
  """
  n, eps = len(distances), jnp.finfo(distances.dtype).eps
  distances = jnp.minimum(distances, distances.T)  # symmetric to the last bit
  apart = jnp.eye(n, dtype=bool) | absent[:, None] | absent
  start = (
    jnp.where(apart, jnp.inf, distances),
    jnp.where(absent, 0, 1),
    jnp.eye(n, dtype=bool),
  )

  def join(carry):
    between, sizes, members = carry
    tied = between <= jnp.min(between) * (1 + _ROUNDING * eps)
    i, j = jnp.divmod(jnp.argmax(tied), n)  # i < j, as it is symmetric
    both = sizes[i] * between[i] + sizes[j] * between[j]
    average = (both / (sizes[i] + sizes[j])).at[jnp.array([i, j])].set(jnp.inf)
    between = between.at[i].set(average).at[:, i].set(average)
    between = between.at[j].set(jnp.inf).at[:, j].set(jnp.inf)
    sizes = sizes.at[i].add(sizes[j]).at[j].set(0)
    return between, sizes, members.at[i].set(members[i] | members[j])

  _, sizes, members = lax.while_loop(
    lambda carry: jnp.sum(carry[1] > 0) > 2, join, start
  )
  return members[jnp.argmax(sizes)] & ~absent


@FunctionRule
def sign_guard(
  updates: Updates,
  *,
  key: jax.Array | None = None,
  fraction: float = 0.1,
  lower: float = 0.1,
  upper: float = 3.0,
) -> tuple[Update, Info]:
  r"""SignGuard: trusts usual lengths, and the usual shares of signs.

  With M the median norm, a client is kept if

  .. math:: L \le \|x_i\| / M \le R

  and if it is in the larger of two clusters by its shares of positive, negative
  and zero entries, counted on a random fraction of the coordinates. Those kept
  are clipped to M and averaged. The clusters are those of average linkage on
  Euclidean distances (the paper: mean shift or k-means).

  Rejected rows (see `lca.geometry`) are never kept; the median is of the
  others. If nobody is kept, as where all of the larger cluster are of unusual
  length, the update is NaN. Whatever fewer than half of the clients send, it is
  no longer than M, and M no longer than the longest honest update.

  Promise (docs/rules.md): full, f < n/2, where its filters leave anybody.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    key: of the draw of coordinates.
    fraction: of the coordinates that are looked at, the same for all clients;
      1 is all of them and needs no key.
    lower: L.
    upper: R.

  Returns:
    One update.

  Raises:
    ValueError: unless 0 < fraction <= 1 and 0 <= lower <= upper; if
      `fraction < 1` and there is no key.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 2.], [2., 1.], [1., 1.], [-1., -2.]])
    >>> update, info = lca.explain(lca.sign_guard)(updates, fraction=1.)
    >>> print(info['selected'])
    [ True  True  True False]

  References:
    Xu et al., Byzantine-robust federated learning through collaborative
    malicious gradient filtering, ICDCS 2022.
  """
  if not 0 < fraction <= 1 or not 0 <= lower <= upper:
    raise ValueError(
      'sign_guard needs 0 < fraction <= 1 and 0 <= lower <= upper, got '
      f'fraction={fraction}, lower={lower}, upper={upper}'
    )
  if fraction < 1 and key is None:
    raise ValueError(f'sign_guard draws fraction={fraction} with a key: None')
  held = lax.stop_gradient(updates)
  gram = geometry.norms_gram(held)
  bad, lengths = geometry.rejected_rows(gram), geometry.norms(gram)
  middle = geometry.median_norm(gram)
  usual = (lower * middle <= lengths) & (lengths <= upper * middle)
  shares = _sign_shares(held, key if fraction < 1 else None, fraction)
  away = jnp.linalg.norm(shares[:, None] - shares, axis=-1)
  verdict = average(gram, usual & larger_cluster(away, bad))
  verdict = verdict._replace(factors=geometry.clip_factors(gram))
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)


@functools.partial(jax.jit, static_argnames='fraction')
def _sign_shares(
  updates: Updates, key: jax.Array | None, fraction: float
) -> jax.Array:
  """`[n, 3]` shares of positive, negative and zero entries."""

  def count(rows, seen):
    signs = (rows > 0, rows < 0, rows == 0)
    return jnp.stack([jnp.sum(s & seen, axis=1) for s in signs], axis=1)

  leaves = jax.tree.leaves(updates)
  ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
  seen = jnp.ones(ends[-1], bool)
  if key is not None:  # drawn at once: XLA would compile every leaf's draw anew
    seen = jax.random.bernoulli(key, fraction, seen.shape)
  counts = sum(
    sums.over_columns(count, leaf, own.reshape(1, *leaf.shape[1:]))
    for leaf, own in zip(leaves, jnp.split(seen, ends[:-1]), strict=True)
  )
  return counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)


def clipped_clustering(
  *, window: int = 1000, threshold: float | None = None
) -> Aggregator:
  r"""Clips to the usual length, then trusts the larger cluster of directions.

  An `Aggregator`. Updates are clipped to :math:`\tau`, the median of the last
  norms seen in this round and before; the larger of two clusters by average
  linkage on the cosine distances is averaged.

  Rejected rows (see `lca.geometry`) are in no cluster, and their norms do not
  count; with nobody left the update is NaN. Whatever fewer than half of the
  clients send, the result is finite, and no longer than :math:`\tau`, which is
  then no longer than the longest honest update remembered.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    window: how many norms are remembered, in whole rounds: of a part of one,
      most might be Byzantine. (The published code remembers all.)
    threshold: :math:`\tau` is no larger than this, if given.

  Returns:
    An Aggregator; its state is the last norms, newest first, with +inf for
    rejected rows and where there are none yet. `lca.explain` of it tells
    `weights`, `selected` and `rejected`.

  Raises:
    ValueError: unless window >= n and threshold > 0.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.clipped_clustering()
    >>> state = aggregator.init(jnp.zeros(2))
    >>> updates = jnp.array([[1., 0.], [2., 0.], [3., .1], [0., -9.]])
    >>> update, state = aggregator.update(updates, state)
    >>> _, _, info = lca.explain(aggregator)(updates, state)
    >>> print(info['selected'])
    [ True  True  True False]

  References:
    Li, Ngai and Voigt, An experimental study of Byzantine-robust aggregation
    schemes in federated learning, IEEE Transactions on Big Data 2023.
  """
  check_integers('clipped_clustering', window=window)
  if threshold is not None:
    check_threshold('clipped_clustering', threshold)

  def init(params):
    del params
    return jnp.full(window, jnp.inf)

  def explain(updates, state, **brought):
    del brought
    gram = geometry.gram(lax.stop_gradient(updates))
    bad, lengths = geometry.rejected_rows(gram), geometry.norms(gram)
    if len(gram) > window:
      raise ValueError(
        f'clipped_clustering needs window >= n, got n={len(gram)}, '
        f'window={window}'
      )
    whole_rounds = jnp.arange(window) < window // len(gram) * len(gram)
    seen = jnp.concatenate([lengths, state])
    past = jnp.where(whole_rounds, seen[:window], jnp.inf)
    # The median of the finite entries, or +inf if there are none; NaN, of
    # states that were saved long ago, comes last in the order.
    ordered, last = jnp.sort(past), jnp.sum(jnp.isfinite(past)) - 1
    limit = ordered[last // 2] / 2 + ordered[(last + 1) // 2] / 2
    if threshold is not None:
      limit = jnp.minimum(limit, threshold)
    chosen = larger_cluster(geometry.distances(gram, 'cosine'), bad)
    verdict = average(gram, chosen)
    factors = geometry.shrink_factors(lengths, limit)
    verdict = verdict._replace(factors=factors)
    update = geometry.mix(updates, verdict.scaled_weights)
    return update, past, verdict.info(gram)

  return Aggregator(init, ExplainedUpdate(explain))
