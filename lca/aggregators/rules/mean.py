"""The mean: the baseline for every robust rule."""

import jax
import jax.numpy as jnp

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import check_weights
from lca.typing import Gram


@gram_rule(needs='nothing')
def mean(gram: Gram, *, weights: jax.Array | None = None) -> Verdict:
  r"""The (weighted) mean of the clients' updates: FedAvg, no robustness at all.

  .. math:: F(x_1, \dots, x_n) = \sum_i w_i x_i / \sum_i w_i

  This is Eq. 2 of García-Márquez et al. 2025 with a server learning rate of
  one: the update of the global model is the unweighted mean of the updates,
  client minus server. With weights proportional to the clients' numbers of
  examples it is FedAvg as in McMahan et al. 2017.

  A single client can move the mean anywhere, and one NaN makes it NaN.

  Promise (docs/rules.md): none.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    weights: `[n]`, nonnegative; None weighs all clients equally.

  Returns:
    One update, in the leaves' dtypes.

  Raises:
    ValueError: unless there is one weight per client.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [2.], [6.]])
    >>> print(lca.mean(updates))
    [3.]
    >>> print(lca.mean(updates, weights=jnp.array([1., 1., 0.])))
    [1.5]

  References:
    McMahan et al., Communication-efficient learning of deep networks from
    decentralized data, AISTATS 2017.
  """
  weights = check_weights('mean', len(gram), weights)
  return Verdict(weights / jnp.sum(weights))  # Eq. 2 with equal weights
