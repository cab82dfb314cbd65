"""Fang et al.'s attacks on Krum and on the trimmed mean, with full knowledge.

Both attacks push the model against the direction in which the honest clients
would move it. The paper states them for the clients' models. Here they are
stated for updates, client minus server.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.aggregators import krum
from lca.attacks import stats
from lca.attacks.base import draw_rows, replace, update_attack
from lca.stacked import geometry, sums
from lca.typing import Update, Updates

Changes = Literal['mean', 'aggregate']
_CHANGES = options.one_of('mean', 'aggregate')


@update_attack(f=options.whole(0), threshold=options.positive, changes=_CHANGES)
def fang_krum(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  aggregate: Callable[[Updates], Update] | None = None,
  f: int,
  threshold: float = 1e-5,
  changes: Changes = 'mean',
) -> Updates:
  r"""Sends the largest step against the model's change that Krum selects.

  .. math:: \hat x_b = -\lambda s

  Here s holds the signs of the change that the model would make without an
  attack. `changes` decides how the attackers know them. With `'aggregate'` they
  are the signs of the server's own aggregate of what all clients computed, as
  for the paper's attackers of full knowledge. With `'mean'`, the default, they
  are estimated by the honest mean, as the paper's attackers of partial
  knowledge do with a mean of their own.

  The search for :math:`\lambda` begins at the paper's upper bound,

  .. math:: \lambda_0 = \sqrt{\frac{\min_{i \in H} \sum_{l \in \Gamma_i}
      \|x_l - x_i\|^2}{(n - 2m - 1)\, d}} +
      \frac{\max_{i \in H} \|x_i\|}{\sqrt d}

  for m Byzantine clients among n and d coordinates, where :math:`\Gamma_i`
  holds the n - m - 2 honest rows nearest to :math:`x_i`. Then :math:`\lambda`
  is halved until Krum selects a Byzantine row. If :math:`\lambda` falls to the
  threshold first, the row is sent although Krum does not select it.

  All attackers send the same row; in the paper, they may differ slightly. Where
  n - 2m - 1 is not positive, the bound uses 1 instead. The search works on
  `[n, n]` inner products only.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    aggregate: function from stacked updates to one update; required by
      `changes='aggregate'`. A simulation passes the server's own aggregation.
    f: number of Byzantine clients that the server's Krum tolerates.
    threshold: the search ends when :math:`\lambda` is at most this; above 0.
    changes: how the attackers know s: `'mean'` or `'aggregate'`.

  Returns:
    Stacked updates.

  Raises:
    ValueError: f is negative or n <= 2f + 2, `threshold` is not above 0, or
      `changes` is unknown.
    TypeError: `changes='aggregate'` without an `aggregate`.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> updates = jnp.array([1., 1.5, 2., 0., 0.])
    >>> sent = attacks.fang_krum(updates, byzantine=updates == 0, f=1)
    >>> print(bool(sent[3] < 0), bool(sent[3] == sent[4]))
    True True

  References:
    Fang et al., Local model poisoning attacks to Byzantine-robust federated
    learning, USENIX Security 2020, section 4.2 and theorem 1.
  """
  honest = stats.honest_rows(updates, byzantine)
  change = _change(changes, updates, honest, aggregate)
  signs = jax.tree.map(jnp.sign, change)
  # Products of the updates with each other, with s, and of s with itself.
  gram = geometry.gram(updates)
  with_signs = geometry.inner(updates, signs)
  signs_squared = geometry.gram(geometry.one_client(signs))[0, 0]

  def refused(strength):
    # The Gram matrix as if the Byzantine rows were -strength * s.
    products = -strength * with_signs
    attacked = jnp.where(byzantine[:, None], products, gram)
    attacked = jnp.where(byzantine, products[:, None], attacked)
    both = byzantine[:, None] & byzantine
    attacked = jnp.where(both, strength**2 * signs_squared, attacked)
    weights = krum.weigh(attacked, f=f).weights
    return (strength > threshold) & ~jnp.any(byzantine & (weights > 0))

  start = _largest_strength(updates, gram, byzantine, honest)
  strength = lax.while_loop(refused, lambda strength: strength / 2, start)
  rows = jax.tree.map(lambda s: -strength.astype(s.dtype) * s, signs)
  return replace(updates, byzantine, rows)


def _change(changes, updates, honest, aggregate):
  """Returns the change that the model would make without an attack."""
  if changes == 'mean':
    return stats.mean(updates, honest)
  if aggregate is None:
    raise TypeError(
      "changes='aggregate' needs a function aggregate from stacked updates to "
      'one update, got None'
    )
  return jax.tree.map(
    lambda x: x.astype(sums.wide(x.dtype)), aggregate(updates)
  )


def _largest_strength(updates, gram, byzantine, honest):
  """Returns the upper bound of theorem 1; 0 without an honest row."""
  n, m = len(byzantine), jnp.sum(byzantine)
  d = float(sum(leaf[0].size for leaf in jax.tree.leaves(updates)))
  # The first term: the smallest sum of squared distances to near rows.
  pairs = honest[:, None] & honest & ~jnp.eye(n, dtype=bool)
  between = jnp.where(pairs, geometry.distances(gram), jnp.inf)
  terms = jnp.sort(between, axis=1) / jnp.maximum(n - 2 * m - 1, 1) / d
  counted = (jnp.arange(n) < n - m - 2) & ~jnp.isinf(terms)
  sums_to_nearest = jnp.sum(jnp.where(counted, terms, 0), axis=1)
  smallest_sum = jnp.min(jnp.where(honest, sums_to_nearest, jnp.inf))
  # The second term: the largest norm.
  largest_norm = jnp.max(jnp.where(honest, geometry.norms(gram), 0))
  bound = jnp.sqrt(smallest_sum) + largest_norm / jnp.sqrt(d)
  # The search halves the bound, which would never end from infinity.
  return jnp.where(honest.any(), jnp.minimum(bound, 1e18), 0)


@update_attack(b=options.number(1), changes=_CHANGES)
def fang_trimmed_mean(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  aggregate: Callable[[Updates], Update] | None = None,
  b: float = 2.0,
  changes: Changes = 'mean',
) -> Updates:
  r"""Sends entries beyond the honest extremes, against the model's change.

  In every coordinate, with the smallest entry l and the largest entry u of the
  honest rows, each Byzantine client draws its own entry:

  .. math:: \hat x_b \sim \begin{cases}
      U(l, \; l b \text{ if } l < 0 \text{ else } l / b) & s \ge 0 \\
      U(u, \; u b \text{ if } u > 0 \text{ else } u / b) & s < 0
      \end{cases}

  where U is the uniform distribution and s the model's change without an
  attack, as in `fang_krum`. The paper uses the attack against the trimmed mean
  and the median.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: PRNG key.
    aggregate: as in `fang_krum`.
    b: how far beyond the extremes to draw, at least 1; the paper's is 2.
    changes: as in `fang_krum`.

  Returns:
    Stacked updates.

  Raises:
    ValueError: b is below 1, or `changes` is unknown.
    TypeError: `changes='aggregate'` without an `aggregate`.

  Examples:
    >>> import jax, jax.numpy as jnp
    >>> from lca import attacks
    >>> sent = attacks.fang_trimmed_mean(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1, key=jax.random.key(0))
    >>> print(bool(0.5 <= sent[1] <= 1))
    True

  References:
    Fang et al., Local model poisoning attacks to Byzantine-robust federated
    learning, USENIX Security 2020, section 4.3.
  """
  honest = stats.honest_rows(updates, byzantine)
  change = _change(changes, updates, honest, aggregate)
  low, high = stats.extremes(updates, honest)
  # Draw between the extreme on the far side of the change ...
  start = jax.tree.map(
    lambda s, lowest, highest: jnp.where(s < 0, highest, lowest),
    change,
    low,
    high,
  )
  # ... and that extreme times b, or over b if b would move it back inside.
  stop = jax.tree.map(
    lambda s, extreme: jnp.where(
      (s < 0) == (extreme > 0), extreme * b, extreme / b
    ),
    change,
    start,
  )
  leaves, structure = jax.tree.flatten(updates)
  ends = list(zip(jax.tree.leaves(start), jax.tree.leaves(stop), strict=True))

  def row(k, own, uniform):
    del own
    first, last = ends[k]
    return first + uniform * (last - first)

  rows = draw_rows(leaves, byzantine, key, jax.random.uniform, row)
  return jax.tree.unflatten(structure, rows)
