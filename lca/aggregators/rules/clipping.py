"""Clips: rules that bound the length of each client's contribution."""

from typing import Literal

import jax
import jax.numpy as jnp

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  Verdict,
  gram_rule,
)
from lca.aggregators.rules.selection import check_integers, check_majority
from lca.aggregators.verdict import scale_rows
from lca.stacked import geometry, sums
from lca.typing import Gram


def _diagonal(gram: Gram, factors: jax.Array) -> Verdict:
  """Returns the verdict that scales rows by factors; rejected rows are NaN."""
  rejected = geometry.rejected_rows(gram)
  return Verdict(jnp.where(rejected[:, None], jnp.nan, jnp.diag(factors)))


@gram_rule(combine=scale_rows, needs='norms')
def clip_to_median_norm(
  gram: Gram, *, median: geometry.Median = 'interpolated'
) -> Verdict:
  r"""Clips every client's update to the median of the clients' norms.

  This is the median gradient clipping of section 3.2 of García-Márquez et al.
  2025:

  .. math:: \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The median is taken over the rows that are not rejected (see `lca.geometry`).
  If fewer than half of the clients are Byzantine, the median lies between
  honest norms.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    median: for an even number of rows, `'interpolated'` takes the mean of the
      middle pair, `'lower'` its lower one.

  Returns:
    Stacked updates of the same structure and dtypes. Rejected rows are NaN.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> lca.clip_to_median_norm(jnp.array([[1.], [2.], [-9.]]))
    Array([[ 1.],
           [ 2.],
           [-2.]], dtype=float32)

  References:
    García-Márquez et al. 2025, section 3.2.
  """
  return _diagonal(gram, geometry.clip_factors(gram, median))


@gram_rule(combine=scale_rows, needs='norms')
def static_clip(gram: Gram, *, threshold: float) -> Verdict:
  r"""Clips every client's update to a fixed norm.

  .. math:: \hat x_i = \min(1, \tau / \|x_i\|)\, x_i

  Followed by `mean`, this is known as norm clipping: one client then moves the
  mean by at most :math:`\tau / n`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    threshold: largest norm :math:`\tau`, in the updates' unit.

  Returns:
    Stacked updates of the same structure and dtypes. A rejected row (see
    `lca.geometry`) becomes zero, as it has no usable direction.

  Raises:
    ValueError: unless threshold > 0.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[3., 4.], [0.6, 0.8], [jnp.inf, 0.]])
    >>> print(lca.static_clip(updates, threshold=1.))
    [[0.6 0.8]
     [0.6 0.8]
     [0.  0. ]]

  References:
    Sun et al., Can you really backdoor federated learning?, 2019.
  """
  check_threshold('static_clip', threshold)
  factors = geometry.shrink_factors(geometry.norms(gram), threshold)
  return Verdict(jnp.diag(jnp.where(geometry.rejected_rows(gram), 0, factors)))


def check_threshold(rule: str, threshold: float) -> None:
  """Raises a ValueError unless the threshold is positive."""
  if not threshold > 0:
    raise ValueError(f'{rule} needs threshold > 0, got threshold={threshold}')


@gram_rule(combine=scale_rows, needs='norms')
def arc(gram: Gram, *, f: int) -> Verdict:
  r"""Adaptive robust clipping: clips the k longest updates.

  The :math:`k = \lfloor 2 (f / n) (n - f) \rfloor` longest updates are clipped
  to the norm of the (k + 1)-th longest.

  As k >= f, no update of f Byzantine clients stays longer than the longest
  honest update. A rejected row (see `lca.geometry`) counts as infinitely long.
  If more than k rows are rejected, nothing is clipped.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.

  Returns:
    Stacked updates of the same structure and dtypes. Rejected rows are NaN.

  Raises:
    ValueError: unless f >= 0 and n > 2f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.arc(jnp.array([[1.], [2.], [-9.]]), f=1)[:, 0])
    [ 1.  2. -2.]

  References:
    Allouah et al., Adaptive gradient clipping for robust federated learning,
    ICLR 2025.
  """
  n = len(gram)
  check_majority('arc', n, f)
  lengths = geometry.norms(gram)
  k = 2 * f * (n - f) // n
  threshold = jnp.sort(lengths)[n - 1 - k]  # the (k + 1)-th largest
  return _diagonal(gram, geometry.shrink_factors(lengths, threshold))


def centered_clip(
  *,
  threshold: float,
  num_iters: int = 1,
  init: Literal['last', 'zero', 'mean'] = 'last',
) -> Aggregator:
  r"""Centred clipping: clips updates around the last aggregate.

  .. math:: v \leftarrow v + \frac{1}{n} \sum_{i=1}^n (x_i - v)
      \min\Big(1, \frac{\tau}{\|x_i - v\|}\Big)

  where v starts at the last aggregate, which is zero before the first round. A
  client moves the result by at most :math:`\tau / n` per iteration. Rejected
  rows (see `lca.geometry`) contribute nothing, and the divisor stays n.

  The iterations work on coefficients: v is a weighted sum of the clients'
  updates and the last aggregate. In float32, the distance of a client from v is
  accurate to 3e-4 of the longer of the two vectors. A threshold below this
  error does not bound the result any further.

  Promise (docs/rules.md): full.

  Args:
    threshold: radius :math:`\tau`, in the updates' unit.
    num_iters: number of iterations per round.
    init: start of v in every round: `'last'` is the last aggregate, as
      published; `'zero'` is zero; `'mean'` is the mean of the round's updates,
      as in byzpy, and gives up the promise.

  Returns:
    An Aggregator whose state is the last aggregate. `lca.explain` reports the
    clients' `weights` and the `rejected` rows.

  Raises:
    ValueError: unless threshold > 0 and num_iters >= 1, or if `init` is
      unknown.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.centered_clip(threshold=1.)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> updates = jnp.array([[1.], [.5], [1e9]])
    >>> update, state = aggregator.update(updates, state)
    >>> print(update.round(4))
    [0.8333]

  References:
    Karimireddy, He and Jaggi, Learning from history for Byzantine robust
    optimization, ICML 2021.
  """
  check_threshold('centered_clip', threshold)
  check_integers('centered_clip', num_iters=num_iters)
  if num_iters < 1:
    raise ValueError(
      f'centered_clip needs num_iters >= 1, got num_iters={num_iters}'
    )
  if init not in ('last', 'zero', 'mean'):
    raise ValueError(f"init must be 'last', 'zero' or 'mean', got {init!r}")

  def init_state(params):
    return jax.tree.map(jnp.zeros_like, params)

  def explain(updates, state, **brought):
    del brought
    # The first iteration needs the clients' norms only, unless it starts at
    # the mean; every further one needs their inner products.
    needs_products = num_iters > 1 or init == 'mean'
    gram_of = geometry.gram if needs_products else geometry.norms_gram
    constant_updates, centre = jax.lax.stop_gradient((updates, state))
    gram = gram_of(constant_updates)
    rejected = geometry.rejected_rows(gram)
    along_centre = jnp.where(
      rejected, 0, geometry.inner(constant_updates, centre)
    )
    # `[n + 1, n + 1]`: the clients' rows and, last, the last aggregate.
    products = jnp.block(
      [
        [geometry.without_rejected(gram), along_centre[:, None]],
        [
          along_centre[None],
          geometry.norms_gram(geometry.one_client(centre)),
        ],
      ]
    )

    def step(_, weights):
      # ||x_i - v||^2 = <x_i, x_i> - 2 <x_i, v> + <v, v>.
      mixed = sums.dot(products, weights)
      squares = jnp.diagonal(products) - 2 * mixed
      squares += sums.dot(weights, mixed)
      distances = jnp.sqrt(jnp.maximum(squares[:-1], 0))
      factors = geometry.shrink_factors(distances, threshold)
      shares = jnp.where(rejected, 0, factors / len(rejected))
      # v + sum_i shares_i (x_i - v), as coefficients.
      return weights * (1 - jnp.sum(shares)) + jnp.append(shares, 0)

    start = {
      'last': jnp.zeros(len(products)).at[-1].set(1),
      'zero': jnp.zeros(len(products)),
      'mean': jnp.append(~rejected / jnp.sum(~rejected), 0),
    }[init].astype(gram.dtype)
    weights = jax.lax.fori_loop(0, num_iters, step, start)
    weight_of_last = weights[-1]
    mixed = geometry.mix(updates, weights[:-1])
    update = jax.tree.map(
      lambda new, old: (new + weight_of_last * old).astype(new.dtype),
      mixed,
      state,
    )
    return update, update, {'weights': weights[:-1], 'rejected': rejected}

  return Aggregator(init_state, ExplainedUpdate(explain))
