"""The coefficient that rows prove of a rule, and curves over attackers."""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lca import options
from lca.robustness.search import worst_case
from lca.stacked import geometry
from lca.typing import Update, Updates

_ROUNDING = 1e-6  # of a mean of equal rows, in units of the rows


def kappa(
  rule: Callable[[Updates], Update],
  updates: Updates,
  f: int,
  *,
  max_subsets: int = 200_000,
) -> float:
  r"""Returns the robustness coefficient that these rows prove of a rule.

  In the definition of the coefficient, any n - f of the rows may be the honest
  ones. This is the largest ratio over all C(n, f) sets S of n - f rows,

  .. math:: \max_{|S| = n - f} \frac{\|F(x) - \bar x_S\|^2}{\frac{1}{|S|}
      \sum_{i \in S} \|x_i - \bar x_S\|^2}

  and so a lower bound on the rule's :math:`\kappa`: see `lca.theory`. Sums are
  in float64.

  Args:
    rule: function from stacked updates to one update, with its options bound,
      which JAX can trace.
    updates: stacked pytree, leaves `[n, ...]` of finite numbers.
    f: number of Byzantine rows, at least 0 and below n / 2.
    max_subsets: largest number of sets; more raise an error.

  Returns:
    The ratio; infinity if the aggregate is not finite, or not at the mean of
    rows that are all equal.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> rows = jnp.array([0., 0., 1., 1., 1.])
    >>> lca.robustness.kappa(lca.median, rows, f=2)
    2.0

  Raises:
    ValueError: unless 0 <= f < n / 2 and C(n, f) <= max_subsets.

  References:
    Allouah et al., Fixing by mixing, AISTATS 2023, Definition 2.
  """
  n = geometry.num_clients(updates)
  options.whole(0)('f', f)
  if n <= 2 * f:
    raise ValueError(f'kappa needs n > 2f, got n={n}, f={f}')
  if math.comb(n, f) > max_subsets:
    raise ValueError(
      f'kappa compares C({n}, {f}) = {math.comb(n, f)} sets of rows, more than '
      f'max_subsets={max_subsets}'
    )
  rows = _flat(updates)
  update = jax.jit(rule)(updates)
  update = _flat(jax.tree.map(lambda x: x[None], update))
  if not np.all(np.isfinite(update)):
    return math.inf
  left_out = list(itertools.combinations(range(n), f))
  sets = np.ones((len(left_out), n))
  np.put_along_axis(sets, np.array(left_out, int), 0, axis=1)
  sets /= n - f
  # From the products of the rows about the aggregate, and their distances.
  moved = rows - update
  numerator = np.einsum('si,ij,sj->s', sets, moved @ moved.T, sets)
  between = np.array([np.sum((rows - row) ** 2, axis=1) for row in rows])
  variance = np.einsum('si,ij,sj->s', sets, between, sets) / 2
  # The mean of equal rows may differ from them by the rounding of float32.
  sizes = sets @ np.sum(rows**2, axis=1)
  numerator = np.where(numerator > _ROUNDING**2 * sizes, numerator, 0)
  with np.errstate(divide='ignore', invalid='ignore'):
    ratios = np.where(numerator > 0, numerator / variance, 0)
  return float(np.max(ratios))


def breakdown(
  rules: Mapping[str, Callable[[int], Callable[[Updates], Update]]],
  updates: Updates,
  fs: Sequence[int],
  *,
  key: jax.Array,
  **search: Any,
) -> dict[str, np.ndarray]:
  r"""Returns how far f attackers move each rule, for several f.

  Args:
    rules: for each name, a function from f to the rule with its options bound,
      such as `lambda f: functools.partial(lca.krum, f=f)`.
    updates: n honest rows, leaves `[n, ...]`. The last f of them are the
      Byzantine ones.
    fs: numbers of Byzantine rows, each at least 1 and below n.
    key: PRNG key.
    **search: options of `worst_case`.

  Returns:
    For each name, the `[len(fs)]` worst distances found of the aggregate from
    the honest mean, in units of the honest rows' root mean squared distance
    from it. NaN where the rule refuses n and f with a ValueError.

  Examples:
    >>> import functools, jax, lca
    >>> rows = jax.random.normal(jax.random.key(0), (7, 3))
    >>> curves = lca.robustness.breakdown(
    ...   {'krum': lambda f: functools.partial(lca.krum, f=f)}, rows, [1, 3],
    ...   key=jax.random.key(1), num_generations=2)
    >>> print((curves['krum'] > 0.5).tolist(), curves['krum'][1])
    [True, False] nan
  """
  n = geometry.num_clients(updates)
  curves = {}
  for name, make in rules.items():
    curves[name] = np.full(len(fs), np.nan)
    for i, f in enumerate(fs):
      rule = make(f)
      try:
        jax.eval_shape(rule, updates)
      except ValueError:
        continue
      honest = jax.tree.map(operator.itemgetter(slice(n - f)), updates)
      worst = worst_case(rule, honest, f, key=key, **search)
      curves[name][i] = math.sqrt(worst.value)
  return curves


def _flat(updates: Updates) -> np.ndarray:
  """Returns the rows as one matrix, `[n, d]`, in float64."""
  leaves = [np.asarray(x, float) for x in jax.tree.leaves(updates)]
  return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
