"""Rules for lengths: what bounds how far one client's update reaches."""

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
  """Scales rows by factors; rejected rows are NaN."""
  bad = geometry.rejected_rows(gram)
  return Verdict(jnp.where(bad[:, None], jnp.nan, jnp.diag(factors)))


@gram_rule(combine=scale_rows, needs='norms')
def clip_to_median_norm(
  gram: Gram, *, median: geometry.Median = 'interpolated'
) -> Verdict:
  r"""Clips every client's update to the median of the clients' norms.

  .. math:: \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The median is taken over the rows that are not rejected (see `lca.geometry`).
  With fewer than half of the clients Byzantine it lies among the honest norms.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    median: for an even count, `'interpolated'` takes the mean of the middle
      pair, `'lower'` its lower one.

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
  r"""Clips every client's update to a norm given beforehand.

  .. math:: \hat x_i = \min(1, \tau / \|x_i\|)\, x_i

  Followed by `mean` it is what others call norm clipping: no client then moves
  the mean by more than :math:`\tau / n`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    threshold: the largest norm :math:`\tau`, in the updates' unit.

  Returns:
    Stacked updates of the same structure and dtypes. A rejected row (see
    `lca.geometry`) becomes zero: it has no direction to keep.

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
  """Raises a ValueError unless the largest norm is positive."""
  if not threshold > 0:
    raise ValueError(f'{rule} needs threshold > 0, got threshold={threshold}')


@gram_rule(combine=scale_rows, needs='norms')
def arc(gram: Gram, *, f: int) -> Verdict:
  r"""Adaptive robust clipping: the longest updates to the norm of the next.

  The :math:`k = \lfloor 2 (f / n) (n - f) \rfloor` longest updates are clipped
  to the norm of the (k + 1)-th longest.

  As k is f or more, no update of f Byzantine clients is left longer than the
  longest honest one. A rejected row (see `lca.geometry`) counts as infinitely
  long. If there are more than k of them, nothing is clipped.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.

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
  threshold = jnp.sort(lengths)[n - 1 - 2 * f * (n - f) // n]
  return _diagonal(gram, geometry.shrink_factors(lengths, threshold))


def centered_clip(
  *,
  threshold: float,
  num_iters: int = 1,
  init: Literal['last', 'zero', 'mean'] = 'last',
) -> Aggregator:
  r"""Clips updates around the last aggregate, an `Aggregator`.

  .. math:: v \leftarrow v + \frac{1}{n} \sum_{i=1}^n (x_i - v)
      \min\Big(1, \frac{\tau}{\|x_i - v\|}\Big)

  from v the last aggregate, zero before the first round. A client moves the
  result by no more than :math:`\tau / n` an iteration. Rejected rows (see
  `lca.geometry`) contribute nothing; n stays. Only the coefficients of v in
  the clients' and the last aggregate's span are iterated: float32 tells a
  client's distance from v to 3e-4 of the longer of the two, and a threshold
  below that bounds no more than this does.

  Promise (docs/rules.md): full.

  Args:
    threshold: the radius :math:`\tau`, in the updates' unit.
    num_iters: iterations a round.
    init: where v starts in every round: from the `'last'` aggregate, as
      published; from `'zero'`; or from the round's `'mean'`, as byzpy does,
      with which nothing is promised.

  Returns:
    An Aggregator; its state is the last aggregate. `lca.explain` of it tells
    the clients' `weights` and who was `rejected`.

  Raises:
    ValueError: unless threshold > 0 and num_iters >= 1; unknown `init`.

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
    # The first distances, unless from the mean, take no clients' products.
    moves = num_iters > 1 or init == 'mean'
    inner = geometry.gram if moves else geometry.norms_gram
    held, centre = jax.lax.stop_gradient((updates, state))
    gram = inner(held)
    bad = geometry.rejected_rows(gram)
    others = jnp.where(bad, 0, geometry.inner(held, centre))
    products = jnp.block(
      [
        [geometry.without_rejected(gram), others[:, None]],
        [others[None], geometry.norms_gram(geometry.one_client(centre))],
      ]
    )

    def step(_, weights):
      mixed = sums.dot(products, weights)
      squares = jnp.diagonal(products) - 2 * mixed
      squares += sums.dot(weights, mixed)
      away = jnp.sqrt(jnp.maximum(squares[:-1], 0))
      shares = geometry.shrink_factors(away, threshold) / len(bad)
      shares = jnp.where(bad, 0, shares)
      return weights * (1 - jnp.sum(shares)) + jnp.append(shares, 0)

    start = {
      'last': jnp.zeros(len(products)).at[-1].set(1),
      'zero': jnp.zeros(len(products)),
      'mean': jnp.append(~bad / jnp.sum(~bad), 0),
    }[init].astype(gram.dtype)
    weights = jax.lax.fori_loop(0, num_iters, step, start)
    kept = weights[-1]
    mixed = geometry.mix(updates, weights[:-1])
    update = jax.tree.map(
      lambda new, old: (new + kept * old).astype(new.dtype), mixed, state
    )
    return update, update, {'weights': weights[:-1], 'rejected': bad}

  return Aggregator(init_state, ExplainedUpdate(explain))
