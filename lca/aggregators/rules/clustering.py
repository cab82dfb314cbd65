"""Rules that split the clients into two clusters and trust the larger one."""

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

_TIE_TOLERANCE = 8  # largest relative gap of tied mean distances, in eps


def larger_cluster(distances: jax.Array, absent: jax.Array) -> jax.Array:
  """Returns the larger of two clusters found by average linkage.

  Average linkage joins the two clusters with the least mean distance between
  their members until two clusters are left. Of pairs at the same distance, up
  to rounding, it joins the pair with the lowest index.

  Args:
    distances: `[n, n]`.
    absent: `[n]` mask of clients that belong to no cluster.

  Returns:
    `[n]` mask of the members of the larger cluster. If both clusters are
    equally large, it is the one with the lowest index.
  """
  n, eps = len(distances), jnp.finfo(distances.dtype).eps
  distances = jnp.minimum(distances, distances.T)  # symmetric to the last bit
  never_joined = jnp.eye(n, dtype=bool) | absent[:, None] | absent
  # Cluster i is stored at the index of its first member: the mean distances
  # between clusters `[n, n]`, their sizes `[n]`, and their members `[n, n]`.
  start = (
    jnp.where(never_joined, jnp.inf, distances),
    jnp.where(absent, 0, 1),
    jnp.eye(n, dtype=bool),
  )

  def join(carry):
    between, sizes, members = carry
    tied = between <= jnp.min(between) * (1 + _TIE_TOLERANCE * eps)
    i, j = jnp.divmod(jnp.argmax(tied), n)  # i < j: `tied` is symmetric
    total = sizes[i] * between[i] + sizes[j] * between[j]
    joined = (total / (sizes[i] + sizes[j])).at[jnp.array([i, j])].set(jnp.inf)
    between = between.at[i].set(joined).at[:, i].set(joined)
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
  r"""SignGuard: keeps clients of moderate norm and typical shares of signs.

  With M the median norm, a client is kept if

  .. math:: L \le \|x_i\| / M \le R

  and if it belongs to the larger of two clusters of sign shares. The sign
  shares of a client are its shares of positive, negative and zero entries,
  counted on a random fraction of the coordinates. The kept updates are clipped
  to M and averaged. The clusters are found by average linkage on Euclidean
  distances (in the paper by mean shift or k-means).

  Rejected rows (see `lca.geometry`) are never kept and do not enter the median.
  If no client is kept, for example if the whole larger cluster has too large or
  too small norms, the update is NaN. Whatever fewer than half of the clients
  send, the update is no longer than M, and M is no longer than the longest
  honest update.

  Promise (docs/rules.md): full, f < n/2, if its filters keep any client.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    key: PRNG key of the draw of coordinates.
    fraction: share of the coordinates to draw, the same coordinates for all
      clients; 1 takes all of them and needs no key.
    lower: bound L.
    upper: bound R.

  Returns:
    One update.

  Raises:
    ValueError: unless 0 < fraction <= 1 and 0 <= lower <= upper, or if
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
    raise ValueError(
      f'sign_guard needs a key to draw fraction={fraction} of the coordinates: '
      'pass key=, or fraction=1'
    )
  constant = lax.stop_gradient(updates)
  gram = geometry.norms_gram(constant)
  rejected, norms = geometry.rejected_rows(gram), geometry.norms(gram)
  middle = geometry.median_norm(gram)
  moderate = (lower * middle <= norms) & (norms <= upper * middle)
  shares = _sign_shares(constant, key if fraction < 1 else None, fraction)
  distances = jnp.linalg.norm(shares[:, None] - shares, axis=-1)
  verdict = average(gram, moderate & larger_cluster(distances, rejected))
  verdict = verdict._replace(factors=geometry.clip_factors(gram))
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)


@functools.partial(jax.jit, static_argnames='fraction')
def _sign_shares(
  updates: Updates, key: jax.Array | None, fraction: float
) -> jax.Array:
  """Returns `[n, 3]` shares of positive, negative and zero entries."""

  def count(rows, drawn):
    signs = (rows > 0, rows < 0, rows == 0)
    return jnp.stack([jnp.sum(s & drawn, axis=1) for s in signs], axis=1)

  leaves = jax.tree.leaves(updates)
  ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])
  drawn = jnp.ones(ends[-1], bool)
  if key is not None:  # one draw for all leaves: XLA compiles every call anew
    drawn = jax.random.bernoulli(key, fraction, drawn.shape)
  counts = sum(
    sums.over_columns(count, leaf, mask.reshape(1, *leaf.shape[1:]))
    for leaf, mask in zip(leaves, jnp.split(drawn, ends[:-1]), strict=True)
  )
  return counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)


def clipped_clustering(
  *, window: int = 1000, threshold: float | None = None
) -> Aggregator:
  r"""Clips to the median of past norms, then averages the larger cluster.

  Updates are clipped to :math:`\tau`, the median norm of this round's and past
  updates. The clients are split into two clusters by average linkage on their
  cosine distances, and the larger cluster is averaged.

  Rejected rows (see `lca.geometry`) belong to no cluster, and their norms are
  not used; if no row is left, the update is NaN. Whatever fewer than half of
  the clients send, the result is finite and no longer than :math:`\tau`, which
  is no longer than the longest honest update in the window.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    window: number of norms to remember. Only whole rounds are used, because
      most norms in a part of a round could be Byzantine. (The published code
      remembers all norms.)
    threshold: upper bound on :math:`\tau`; None is no bound.

  Returns:
    An Aggregator whose state is the last norms, `[window]`, newest first, with
    +inf for rejected rows and for norms that are still missing.
    `lca.explain` reports `weights`, `selected` and `rejected`.

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
    rejected, norms = geometry.rejected_rows(gram), geometry.norms(gram)
    if len(gram) > window:
      raise ValueError(
        f'clipped_clustering needs window >= n, got n={len(gram)}, '
        f'window={window}'
      )
    whole_rounds = jnp.arange(window) < window // len(gram) * len(gram)
    all_norms = jnp.concatenate([norms, state])
    past = jnp.where(whole_rounds, all_norms[:window], jnp.inf)
    # The median of the finite entries, or +inf if there are none. States that
    # older versions have saved may hold NaN, which sorts last as well.
    ordered, last = jnp.sort(past), jnp.sum(jnp.isfinite(past)) - 1
    limit = ordered[last // 2] / 2 + ordered[(last + 1) // 2] / 2
    if threshold is not None:
      limit = jnp.minimum(limit, threshold)
    chosen = larger_cluster(geometry.distances(gram, 'cosine'), rejected)
    verdict = average(gram, chosen)
    factors = geometry.shrink_factors(norms, limit)
    verdict = verdict._replace(factors=factors)
    update = geometry.mix(updates, verdict.scaled_weights)
    return update, past, verdict.info(gram)

  return Aggregator(init, ExplainedUpdate(explain))
