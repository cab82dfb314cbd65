"""Rules that aggregate every coordinate on its own.

Their layerwise form equals the rule itself. They reject no rows: a NaN sorts as
+inf.
"""

from typing import Literal

import jax

from lca.aggregators.base import CoordinatewiseRule, Info
from lca.aggregators.rules.selection import check_integers, check_majority
from lca.stacked import geometry, order_statistics
from lca.typing import Update, Updates

Middle = Literal['interpolated', 'lower', 'upper']


@CoordinatewiseRule
def median(
  updates: Updates, *, median: Middle = 'interpolated'
) -> tuple[Update, Info]:
  r"""Returns the coordinate-wise median.

  .. math:: F(x_1, \dots, x_n)_k = \mathrm{med}_i\, x_{ik}

  The median is exact, also with ties and infinities; a NaN counts as +inf.
  Whatever fewer than half of the clients send, every coordinate lies between
  entries of the other clients.

  Promise (docs/rules.md): hull, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    median: of an even number of entries, `'interpolated'` is the mean of the
      middle pair; `'lower'` is its lower entry (as in byzpy and PyTorch);
      `'upper'` is its upper entry (as in flex-clash).

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unknown `median`.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [4.], [2.], [jnp.nan]])
    >>> print(lca.median(updates), lca.median(updates, median='lower'))
    [3.] [2.]

  References:
    Yin et al., Byzantine-robust distributed learning: towards optimal
    statistical rates, ICML 2018.
  """
  return _take(
    _middle_ranks(geometry.num_clients(updates), median), updates
  ), {}


def _middle_ranks(n: int, median: Middle) -> order_statistics.RankedMean:
  ranks = {
    'interpolated': ((n - 1) // 2, n // 2),
    'lower': ((n - 1) // 2, (n - 1) // 2),
    'upper': (n // 2, n // 2),
  }
  if median not in ranks:
    raise ValueError(f'median must be one of {sorted(ranks)}, got {median!r}')
  return order_statistics.RankedMean(*ranks[median])


@CoordinatewiseRule
def trimmed_mean(
  updates: Updates, *, f: int, f_above: int | None = None
) -> tuple[Update, Info]:
  r"""Averages each coordinate without its f lowest and f highest entries.

  .. math:: F(x_1, \dots, x_n)_k = \frac{1}{n - 2f}
      \sum_{i=f+1}^{n-f} x_{(i)k}

  where :math:`x_{(1)k} \le \dots \le x_{(n)k}`. Trimmed entries enter no
  sum, so that they leave no rounding error. A NaN counts as
  +inf. Whatever f clients send, every coordinate lies between entries of the
  other clients.

  Promise (docs/rules.md): hull.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of entries to trim on each side.
    f_above: number of entries to trim from above instead; None is f
      (flex-clash: f - 1).

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unless f >= 0, f_above >= 0 and n > f + f_above.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.trimmed_mean(jnp.array([[1.], [2.], [4.], [1e30]]), f=1))
    [3.]

  References:
    Yin et al., Byzantine-robust distributed learning: towards optimal
    statistical rates, ICML 2018.
  """
  n = geometry.num_clients(updates)
  above = f if f_above is None else f_above
  check_integers('trimmed_mean', f=f, f_above=above)
  if f < 0 or above < 0 or n <= f + above:
    raise ValueError(
      f'trimmed_mean needs f >= 0, f_above >= 0 and n > f + f_above, got '
      f'n={n}, f={f}, f_above={above}'
    )
  return _take(order_statistics.RankedMean(f, n - 1 - above), updates), {}


@CoordinatewiseRule
def meamed(
  updates: Updates, *, f: int, median: Middle = 'interpolated'
) -> tuple[Update, Info]:
  r"""Averages the n - f entries of each coordinate nearest to its median.

  .. math:: F(x_1, \dots, x_n)_k = \frac{1}{n - f} \sum_{i \in S_k} x_{ik}

  where :math:`S_k` holds the n - f smallest :math:`|x_{ik} - \mathrm{med}_j
  x_{jk}|`; entries that tie for the last places share these places. A NaN
  counts as +inf. If at most f entries of a coordinate are not finite, the
  result is finite. But f clients can move it: a Byzantine entry replaces an
  honest one if it is closer to the median.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    median: as in `lca.median`; byzpy takes the `'lower'` one.

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unless f >= 0 and n > 2f, or if `median` is unknown.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.meamed(jnp.array([[1.], [2.], [3.], [4.], [90.]]), f=2))
    [3.]

  References:
    Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD, 2018 (mean
    around median).
  """
  n = geometry.num_clients(updates)
  check_majority('meamed', n, f)
  return _take(
    order_statistics.NearestMean(*_middle_ranks(n, median), n - f), updates
  ), {}


@CoordinatewiseRule
def phocas(updates: Updates, *, f: int) -> tuple[Update, Info]:
  r"""Averages the n - f entries of each coordinate nearest to a trimmed mean.

  With :math:`t_k` the mean of coordinate k without its f lowest and f highest
  entries, as in `lca.trimmed_mean`,

  .. math:: F(x_1, \dots, x_n)_k = \frac{1}{n - f} \sum_{i \in S_k} x_{ik}

  where :math:`S_k` holds the n - f smallest :math:`|x_{ik} - t_k|`; entries
  that tie for the last places share these places. `lca.meamed` measures from
  the median instead. A NaN counts as +inf. If at most f entries of a coordinate
  are not finite, the result is finite. But f clients can move it: a Byzantine
  entry replaces an honest one if it is closer to the trimmed mean.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate, the paper's b.

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unless f >= 0 and n > 2f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.phocas(jnp.array([[0.], [0.], [0.], [6.], [9.]]), f=1))
    [1.5]

  References:
    Xie, Koyejo and Gupta, Phocas: dimensional Byzantine-resilient stochastic
    gradient descent, 2018.
  """
  n = geometry.num_clients(updates)
  check_majority('phocas', n, f)
  return _take(order_statistics.NearestMean(f, n - 1 - f, n - f), updates), {}


@CoordinatewiseRule
def sign_majority(updates: Updates, *, theta: int) -> tuple[Update, Info]:
  r"""Returns the mean, negated where too few clients agree on its sign.

  .. math:: F(x_1, \dots, x_n)_k = \pm \frac{1}{n} \sum_i x_{ik}, \quad
      + \text{ where } \Big|\sum_i \mathrm{sign}(x_{ik})\Big| \ge \theta

  The paper describes a robust learning rate: the server's learning rate where
  clients agree, and its negative elsewhere. Nothing is promised, as the mean
  itself is not robust; a NaN counts as +inf.

  Promise (docs/rules.md): none.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    theta: threshold :math:`\theta` for the absolute sum of the signs.

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unless 0 <= theta <= n.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 1.], [3., -3.], [5., -1.]])
    >>> print(lca.sign_majority(updates, theta=2))
    [3. 1.]

  References:
    Ozdayi, Kantarcioglu and Gel, Defending against backdoors in federated
    learning with robust learning rate, AAAI 2021.
  """
  n = geometry.num_clients(updates)
  check_integers('sign_majority', theta=theta)
  if not 0 <= theta <= n:
    raise ValueError(
      f'sign_majority needs 0 <= theta <= n, got n={n}, theta={theta}'
    )
  return _take(order_statistics.SignedMean(theta), updates), {}


def _take(statistic: order_statistics.Statistic, updates: Updates) -> Update:
  leaves, treedef = jax.tree.flatten(updates)
  return jax.tree.unflatten(treedef, order_statistics.take(statistic, leaves))
