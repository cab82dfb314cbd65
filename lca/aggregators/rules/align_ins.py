"""The rule that inspects how well updates align with each other's signs."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.rules.selection import average, check_weights, near_median
from lca.stacked import geometry, row_statistics, sums
from lca.typing import Update, Updates


@FunctionRule
def align_ins(
  updates: Updates,
  *,
  params: Update,
  weights: jax.Array | None = None,
  top_fraction: float = 0.3,
  lambda_s: float = 1.0,
  lambda_c: float = 1.0,
) -> tuple[Update, Info]:
  r"""AlignIns: averages clients whose updates are aligned like most others.

  Two numbers say how an update is aligned. Its temporal direction alignment is
  its cosine with the parameters w that the clients started from. Its masked
  principal sign alignment is the share of its k largest entries whose sign is
  the one that most clients have in that coordinate:

  .. math:: \omega_i = \cos(x_i, w), \qquad
      \rho_i = \frac{1}{k} \sum_{l \in T_i} [\mathrm{sign}(x_{il}) = p_l],
      \qquad p = \mathrm{sign}\Big(\sum_j \mathrm{sign}(x_j)\Big)

  where :math:`T_i` holds the k entries of largest magnitude, and k is the
  `top_fraction` of all entries, rounded down, but at least 1. A client is kept
  if each number is near its median over the clients, counted in standard
  deviations:

  .. math:: |\omega_i - \mathrm{med}(\omega)| \le
      \lambda_c\, \mathrm{std}(\omega), \qquad
      |\rho_i - \mathrm{med}(\rho)| \le \lambda_s\, \mathrm{std}(\rho)

  The kept updates are clipped to the lower median of their own norms and
  averaged. If no client is kept, the update is zero.

  Entries that tie for the last places in :math:`T_i` share these places. The
  cosine with a zero row, or with zero parameters, is 0. Rejected rows (see
  `lca.geometry`) have no vote in p, enter no median and are never kept; if no
  row is left, or w itself is rejected, the update is NaN. The published
  comparison is strict; here a client exactly at the bound is kept.

  The update is finite, whatever fewer than all clients send. Its length is not
  bounded: several clients that agree can narrow the standard deviations until
  few others are kept.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    params: w, one tree shaped like one update. A round of the simulator passes
      it.
    weights: `[n]`, nonnegative, such as numbers of examples; None weighs all
      kept clients equally.
    top_fraction: share of an update's entries whose signs count. (The published
      code calls it sparsity.)
    lambda_s: bound on the alignment of signs, in standard deviations.
    lambda_c: bound on the cosine with w, in standard deviations.

  Returns:
    One update.

  Raises:
    ValueError: unless 0 < top_fraction <= 1, lambda_s >= 0 and lambda_c >= 0,
      there is one weight per client, and `params` is shaped like one update.

  Examples:
    The last client's largest entries have other signs than most clients':

    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 2., 3.], [2., 1., 3.], [1., 3., 2.],
    ...                      [-3., -2., 1.]])
    >>> update, info = lca.explain(lca.align_ins)(
    ...   updates, params=jnp.array([0., 0., 1.]), top_fraction=0.7)
    >>> print(info['selected'])
    [ True  True  True False]

  References:
    Xu, Zhang and Hu, Detecting backdoor attacks in federated learning via
    direction alignment inspection, CVPR 2025.
  """
  if not (0 < top_fraction <= 1 and lambda_s >= 0 and lambda_c >= 0):
    raise ValueError(
      'align_ins needs 0 < top_fraction <= 1, lambda_s >= 0 and lambda_c >= 0, '
      f'got top_fraction={top_fraction}, lambda_s={lambda_s}, '
      f'lambda_c={lambda_c}'
    )
  constant, w = lax.stop_gradient((updates, params))
  gram = geometry.norms_gram(constant)
  sizes = check_weights('align_ins', len(gram), weights)
  inner = geometry.inner(constant, w)
  (length,) = geometry.norms(geometry.norms_gram(geometry.one_client(w)))
  gram = jnp.where(jnp.isinf(length), jnp.nan, gram)  # rejects all clients
  rejected, norms = geometry.rejected_rows(gram), geometry.norms(gram)

  comparable = ~rejected & (norms > 0) & (length > 0)
  safe_norms = jnp.where(comparable, norms, 1)
  cosines = inner / safe_norms / jnp.where(length > 0, length, 1)
  cosines = jnp.where(comparable, jnp.clip(cosines, -1, 1), 0)  # omega
  leaves = jax.tree.leaves(constant)
  agreement = 1 - _disagreement(leaves, ~rejected, top_fraction)  # rho

  kept = near_median(cosines, rejected, lambda_c)
  kept &= near_median(agreement, rejected, lambda_s)
  verdict = average(gram, kept, sizes=sizes)
  none_kept = ~jnp.any(kept) & ~jnp.all(rejected)
  verdict = verdict._replace(
    weights=jnp.where(none_kept, 0, verdict.weights),
    factors=geometry.clip_factors(gram, 'lower', rejected=~kept),
  )
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)


def _disagreement(
  leaves: list[jax.Array], voters: jax.Array, top_fraction: float
) -> jax.Array:
  """Returns the share of each row's largest entries without the voted sign.

  Args:
    leaves: `[n, ...]` each.
    voters: `[n]` mask of the rows that vote on the signs.
    top_fraction: share of the entries that count.

  Returns:
    `[n]`, in [0, 1].
  """
  size = sum(leaf[0].size for leaf in leaves)
  k = max(1, int(top_fraction * size))
  last = row_statistics.kth_largest_magnitudes(leaves, k)

  def count(x, last, voters):
    x = x.astype(last.dtype)
    signs, magnitudes = jnp.sign(x), jnp.abs(x)
    votes = jnp.sum(jnp.where(voters[:, None], signs, 0), axis=0)
    wrong = signs != jnp.sign(votes)
    above, tied = magnitudes > last[:, None], magnitudes == last[:, None]
    masks = (above, above & wrong, tied, tied & wrong)
    return jnp.stack([jnp.sum(mask, axis=1) for mask in masks])

  counts = [
    sums.over_columns(count, leaf, whole=(last, voters)) for leaf in leaves
  ]
  above, wrong, tied, tied_wrong = functools.reduce(jnp.add, counts)
  places = (k - above) / jnp.maximum(tied, 1)  # of an entry that ties
  return (wrong + places * tied_wrong) / k
