"""For which n and f the guarantees of a rule hold, and where they end."""

import math
from collections.abc import Callable
from typing import NamedTuple

from lca.options import number, positive, whole
from lca.registry import unknown


class Condition(NamedTuple):
  """Says how many Byzantine clients a rule tolerates.

  Attributes:
    text: the condition, as in the rule's error.
    largest_f: function from n to the largest f; negative if n is too small.
    source: where the condition is from.
  """

  text: str
  largest_f: Callable[[int], int]
  source: str


_MAJORITY = Condition(
  'n > 2f',
  lambda n: (n - 1) // 2,
  'Allouah et al. 2023: a robustness coefficient needs f < n / 2',
)
_KRUM = Condition(
  'n > 2f + 2',
  lambda n: (n - 3) // 2,
  'Blanchard et al. 2017, Proposition 4.2',
)
_NOBODY = Condition('f = 0', lambda n: 0, 'one client moves it arbitrarily far')

CONDITIONS: dict[str, Condition] = {
  'mean': _NOBODY,
  'cge': _NOBODY,
  'krum': _KRUM,
  'multi_krum': _KRUM,
  'bulyan_trimmed': _KRUM,
  'bulyan': Condition(
    'n >= 4f + 3', lambda n: (n - 3) // 4, 'El Mhamdi et al. 2018'
  ),
  'medoid': _MAJORITY,
  'geometric_median': _MAJORITY,
  'median': _MAJORITY,
  'trimmed_mean': _MAJORITY,
  'meamed': _MAJORITY,
  'phocas': _MAJORITY,
  'monna': _MAJORITY,
  'mda': _MAJORITY,
  'smea': _MAJORITY,
  'caf': _MAJORITY,
}
"""The conditions by the name of the rule, for the guarantees to hold."""


def feasible(rule: str, n: int, f: int) -> bool:
  """Returns True if the guarantees of a rule can hold for these n and f.

  Examples:
    >>> from lca import theory
    >>> theory.feasible('krum', 11, 4), theory.feasible('bulyan', 11, 4)
    (True, False)

  Raises:
    ValueError: the rule has no condition in `CONDITIONS`, n is below 1, or f is
      negative.
  """
  whole(1)('n', n)
  whole(0)('f', f)
  return f <= _find(rule).largest_f(n)


def check(rule: str, n: int, f: int) -> None:
  """Checks that the guarantees of a rule can hold for these n and f.

  Raises:
    ValueError: they cannot, or as for `feasible`.
  """
  if not feasible(rule, n, f):
    raise ValueError(f'{rule} needs {CONDITIONS[rule].text}, got n={n}, f={f}')


def largest_f(rule: str, n: int) -> int:
  """Returns the largest number of Byzantine clients that a rule tolerates.

  Rules that one client can move arbitrarily far tolerate none.

  Examples:
    >>> from lca import theory
    >>> [theory.largest_f(x, 11) for x in ('mean', 'median', 'krum', 'bulyan')]
    [0, 5, 4, 2]

  Raises:
    ValueError: as for `feasible`, or n is too small for f = 0.
  """
  check(rule, n, 0)
  return CONDITIONS[rule].largest_f(n)


def breakdown_point(rule: str, n: int) -> float:
  """Returns the least share of rows from which on a rule has no guarantee.

  The finite-sample breakdown point (Donoho and Huber 1983) is the least share
  m / n of the rows that, replaced by others, carry an estimate arbitrarily far.
  For the mean, the median, the trimmed mean and the geometric median, it is the
  number returned here (with as many entries trimmed as possible). For other
  rules, their condition ends at this share; they may withstand more.

  Args:
    rule: name of the rule.
    n: number of rows.

  Examples:
    >>> from lca import theory
    >>> [round(theory.breakdown_point(x, 11), 3) for x in ('mean', 'median')]
    [0.091, 0.545]
    >>> [round(theory.breakdown_point(x, 11), 3) for x in ('krum', 'bulyan')]
    [0.455, 0.273]

  Raises:
    ValueError: as for `largest_f`.

  References:
    Donoho and Huber, The notion of breakdown point, 1983; Lopuhaä and
    Rousseeuw, Breakdown points of affine equivariant estimators of multivariate
    location and covariance matrices, Annals of Statistics 1991 (the geometric
    median).
  """
  return (largest_f(rule, n) + 1) / n


def krum_eta(n: int, f: int) -> float:
  r"""Returns Krum's constant eta(n, f).

  .. math:: \eta(n, f)^2 = 2 \Big(n - f +
      \frac{f (n - f - 2) + f^2 (n - f - 1)}{n - 2f - 2}\Big)

  Examples:
    >>> from lca import theory
    >>> round(theory.krum_eta(11, 2), 3)
    6.033

  Raises:
    ValueError: unless n > 2f + 2.

  References:
    Blanchard et al., Machine learning with adversaries: Byzantine tolerant
    gradient descent, NeurIPS 2017, Proposition 4.2.
  """
  check('krum', n, f)
  extra = f * (n - f - 2) + f**2 * (n - f - 1)
  return math.sqrt(2 * (n - f + extra / (n - 2 * f - 2)))


def krum_sine(
  n: int, f: int, *, num_parameters: int, sigma: float, norm: float
) -> float:
  r"""Returns the sine of the angle alpha of Krum's guarantee.

  If the honest rows are independent and unbiased estimates of a gradient g,
  with a deviation :math:`\sigma` in each of d coordinates, Krum is
  :math:`(\alpha, f)`-Byzantine resilient with

  .. math:: \sin \alpha = \frac{\eta(n, f) \sqrt d\, \sigma}{\|g\|}

  Its expectation then has at least the inner product :math:`(1 - \sin \alpha)
  \|g\|^2` with g. Nothing is guaranteed if the result is 1 or more.

  Args:
    n: number of clients.
    f: number of Byzantine clients.
    num_parameters: d.
    sigma: :math:`\sigma`, above 0.
    norm: :math:`\|g\|`, above 0.

  Examples:
    >>> from lca import theory
    >>> round(theory.krum_sine(
    ...   11, 2, num_parameters=100, sigma=.01, norm=1.), 3)
    0.603

  Raises:
    ValueError: unless n > 2f + 2, or if a number is out of its range.

  References:
    Blanchard et al. 2017, Proposition 4.2.
  """
  whole(1)('num_parameters', num_parameters)
  number(0)('sigma', sigma)
  positive('norm', norm)
  return krum_eta(n, f) * math.sqrt(num_parameters) * sigma / norm


def _find(rule: str) -> Condition:
  if rule not in CONDITIONS:
    raise ValueError(unknown('condition', rule, {'condition': CONDITIONS}))
  return CONDITIONS[rule]
