"""Fang et al.'s attacks on Krum and on the trimmed mean, with full knowledge.

They push the model against the direction in which honest clients move it. The
published attacks are on models; a row here is what is left of one when the
server's is taken away.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.aggregators import krum
from lca.attacks import honest as among
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
  r"""Sends the strongest row against the model's change that Krum selects.

  .. math:: \hat x_b = -\lambda s, \qquad
      \lambda_0 = \sqrt{\frac{\min_{i \in H} \sum_{l \in \Gamma_i}
      \|x_l - x_i\|^2}{(n - 2m - 1)\, d}} +
      \frac{\max_{i \in H} \|x_i\|}{\sqrt d}

  with m Byzantine clients among n, d coordinates, and :math:`\Gamma_i` the n -
  m - 2 honest rows nearest to :math:`x_i`. s holds the signs of the change that
  the model would make without an attack. The paper's attackers of full
  knowledge know it, from what all clients have computed and the server's
  aggregate of that (`changes='aggregate'`). Its attackers of partial knowledge
  estimate the signs by those of a mean, here of the honest rows (`'mean'`, the
  default).

  From the paper's bound :math:`\lambda_0` on, :math:`\lambda` is halved until
  Krum selects one of the copies, or it is at most the threshold: that one is
  then sent all the same. Krum is decided on `[n, n]` inner products alone.

  All send the same row (the paper's others may differ by a little), and where
  m leaves no n - 2m - 1 > 0, the bound takes 1.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    aggregate: from stacked updates to one update; `changes='aggregate'` needs
      it, and a simulation brings the server's own.
    f: that the server's Krum tolerates.
    threshold: where the search ends, above 0.
    changes: whose signs s are.

  Returns:
    Stacked updates.

  Raises:
    ValueError: unless n > 2f + 2 and f >= 0, a threshold not above 0, or
      unknown changes.
    TypeError: `changes='aggregate'` without an `aggregate`.

  References:
    Fang et al., Local model poisoning attacks to Byzantine-robust federated
    learning, USENIX Security 2020, section 4.2 and theorem 1.
  """
  honest = among.honest_rows(updates, byzantine)
  change = _change(changes, updates, honest, aggregate)
  signs = jax.tree.map(jnp.sign, change)
  gram, along = geometry.gram(updates), geometry.inner(updates, signs)
  square = geometry.gram(geometry.one_client(signs))[0, 0]

  def refused(strength):
    # The Gram matrix with copies of one row in the place of the Byzantine.
    products = -strength * along
    sent = jnp.where(byzantine[:, None], products, gram)
    sent = jnp.where(byzantine, products[:, None], sent)
    both = byzantine[:, None] & byzantine
    sent = jnp.where(both, strength**2 * square, sent)
    weights = krum.weigh(sent, f=f).weights
    return (strength > threshold) & ~jnp.any(byzantine & (weights > 0))

  start = _largest_strength(updates, gram, byzantine, honest)
  strength = lax.while_loop(refused, lambda strength: strength / 2, start)
  rows = jax.tree.map(lambda s: -strength.astype(s.dtype) * s, signs)
  return replace(updates, byzantine, rows)


def _change(changes, updates, honest, aggregate):
  """Returns the change that the model would make without an attack."""
  if changes == 'mean':
    return among.mean(updates, honest)
  if aggregate is None:
    raise TypeError("changes='aggregate' needs a function aggregate")
  return jax.tree.map(
    lambda x: x.astype(sums.wide(x.dtype)), aggregate(updates)
  )


def _largest_strength(updates, gram, byzantine, honest):
  """Returns the bound of theorem 1."""
  n, m = len(byzantine), jnp.sum(byzantine)
  size = float(sum(leaf[0].size for leaf in jax.tree.leaves(updates)))
  others = honest[:, None] & honest & ~jnp.eye(n, dtype=bool)
  between = jnp.where(others, geometry.distances(gram), jnp.inf)
  near = jnp.sort(between, axis=1) / jnp.maximum(n - 2 * m - 1, 1) / size
  counted = (jnp.arange(n) < n - m - 2) & ~jnp.isinf(near)
  nearest = jnp.sum(jnp.where(counted, near, 0), axis=1)
  closest = jnp.min(jnp.where(honest, nearest, jnp.inf))
  longest = jnp.max(jnp.where(honest, geometry.norms(gram), 0))
  bound = jnp.sqrt(closest) + longest / jnp.sqrt(size)
  # Infinity is never halved to an end.
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
  r"""Sends entries beyond the honest extreme against the model's change.

  Per coordinate, with the honest rows' smallest entry l and largest one u,

  .. math:: \hat x_b \sim \begin{cases}
      U(l, \; l b \text{ if } l < 0 \text{ else } l / b) & s \ge 0 \\
      U(u, \; u b \text{ if } u > 0 \text{ else } u / b) & s < 0
      \end{cases}

  where s is the model's change without an attack, as in `fang_krum`.

  Every Byzantine client draws its own. The paper gives it against the trimmed
  mean and the median.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: a PRNG key.
    aggregate: as in `fang_krum`.
    b: how far beyond; at least 1, in the paper 2.
    changes: as in `fang_krum`.

  Returns:
    Stacked updates.

  Raises:
    ValueError: b below 1, or unknown changes.
    TypeError: `changes='aggregate'` without an `aggregate`.

  References:
    Fang et al., Local model poisoning attacks to Byzantine-robust federated
    learning, USENIX Security 2020, section 4.3.
  """
  honest = among.honest_rows(updates, byzantine)
  change = _change(changes, updates, honest, aggregate)
  low, high = among.extremes(updates, honest)
  start = jax.tree.map(
    lambda m, lowest, highest: jnp.where(m < 0, highest, lowest),
    change,
    low,
    high,
  )
  # Away from zero where that is beyond, towards it where it is not.
  stop = jax.tree.map(
    lambda m, e: jnp.where((m < 0) == (e > 0), e * b, e / b), change, start
  )
  leaves, structure = jax.tree.flatten(updates)
  ends = list(zip(jax.tree.leaves(start), jax.tree.leaves(stop), strict=True))

  def row(k, part):
    first, last = ends[k]
    return first + part * (last - first)

  rows = draw_rows(leaves, byzantine, key, jax.random.uniform, row)
  return jax.tree.unflatten(structure, rows)
