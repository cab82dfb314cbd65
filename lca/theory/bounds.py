r"""Upper bounds on the robustness coefficient kappa, each with its proof.

Every bound holds for all rows, all dimensions and every set S of n - f honest
rows, in exact arithmetic, for the rule as `lca.aggregators` defines it. Where a
paper states a constant, the docstring names the paper. Where the definition
here differs from the paper's, or a sharper constant is as easy, the docstring
derives the bound. In all derivations, h = n - f is the number of honest rows,
:math:`\mu` their mean, :math:`V = \frac{1}{h} \sum_{i \in S} \|x_i - \mu\|^2`,
and D the distance of the aggregate from :math:`\mu`, so that a bound is one on
:math:`D^2 / V`. The derivations use two facts:

- *Subsets.* The mean of c of the h honest rows is at most :math:`\sqrt{V (h -
  c) / c}` from :math:`\mu` (Cauchy-Schwarz with the rows left out).
- *Coordinates.* A bound on a coordinate-wise rule in one dimension is one in
  all, because :math:`D^2` and V are sums over coordinates. For the same reason
  the layerwise form of a rule has every bound of the rule. (A layer's rows are
  rows of a smaller dimension.)

The cosine forms have no finite bound: see docs/robustness.md.
"""

import math
from collections.abc import Callable, Sequence

from lca.options import whole
from lca.registry import Registry
from lca.theory.conditions import check


def kappa_bound(
  rule: str, n: int, f: int, *, pre: Sequence[str] = (), **options: int
) -> float:
  """Returns an upper bound on a rule's robustness coefficient.

  Args:
    rule: name of the rule, in `BOUNDS`.
    n: number of clients.
    f: number of Byzantine clients, which is also the rule's f.
    pre: names of pre-aggregators in `PRE_BOUNDS`, with the same f, in the order
      in which they are applied.
    **options: of the rule, where its bound depends on them.

  Returns:
    The bound; infinity if there is none, since no value would do.

  Examples:
    >>> from lca import theory
    >>> theory.kappa_bound('trimmed_mean', 11, 2)
    0.2857142857142857
    >>> round(theory.kappa_bound('krum', 11, 2), 2)
    5.42
    >>> theory.kappa_bound('mean', 11, 2)
    inf
    >>> theory.kappa_bound('krum', 11, 5)
    Traceback (most recent call last):
    ValueError: krum needs n > 2f + 2, got n=11, f=5

  Raises:
    ValueError: a name is unknown, or n and f are infeasible for the rule (see
      `lca.theory.CONDITIONS`).
    TypeError: an option is unknown or missing.
  """
  BOUNDS.check(rule, options)
  if rule not in _UNBOUNDED:
    check(rule, n, f)
  kappa = BOUNDS[rule](n, f, **options)
  for name in reversed(pre):
    kappa = PRE_BOUNDS.find(name)(kappa, n, f)
  return kappa


def lower_bound(n: int, f: int) -> float:
  r"""Returns the least coefficient that any rule can have, f / (n - 2f).

  If f rows are 1 and all others 0, the n - f zeros may be the honest rows: then
  V = 0 and the aggregate must be 0. But the honest rows may also be the ones
  and n - 2f zeros: then :math:`\mu = f / h` and :math:`V = f (n - 2f) / h^2`,
  so that :math:`D^2 / V = f / (n - 2f)`.

  Examples:
    >>> from lca import theory
    >>> theory.lower_bound(11, 4)
    1.3333333333333333

  Raises:
    ValueError: unless n > 2f.

  References:
    Allouah et al., Fixing by mixing: a recipe for optimal Byzantine ML under
    heterogeneity, AISTATS 2023.
  """
  whole(0)('f', f)
  if n <= 2 * f:
    raise ValueError(f'lower_bound needs n > 2f, got n={n}, f={f}')
  return f / (n - 2 * f)


def trimmed_mean(n: int, f: int) -> float:
  r"""Trimmed mean: f / (n - 2f), which no rule can be below.

  In one dimension, the rule does not fall when a Byzantine entry grows. Hence
  it is largest when all f are infinite. It then is the mean of n - 2f honest
  entries, at most :math:`\sqrt{V f / (n - 2f)}` above :math:`\mu`.

  Allouah et al. 2023 prove the order f / n, with a larger constant. The value
  here is the coefficient itself (see `lower_bound`).
  """
  return lower_bound(n, f)


def median(n: int, f: int) -> float:
  r"""Coordinate-wise median: (h - k) / k with k = floor(n/2) + 1 - f.

  As for the trimmed mean, the worst Byzantine entries are infinite. For odd n,
  k honest entries are then at least the median m, and their mean, which is no
  less than m, is at most :math:`\sqrt{V (h - k) / k}` above :math:`\mu`. For
  even n, m is the mean of two entries, and the k entries from the smaller of
  them upwards have a mean of at least m.

  The value is attained, if k honest rows are equal, and the others, too.
  Allouah et al. 2023 have :math:`4 (1 + f / (n - 2f))^2`, as for the geometric
  median, which is the same rule in one dimension.
  """
  k = n // 2 + 1 - f
  return (n - f - k) / k


def geometric_median(n: int, f: int) -> float:
  r"""Geometric median: :math:`4 (1 + f / (n - 2f))^2`.

  At the geometric median, the sum of distances is at most the one at
  :math:`\mu`. Between the two, a Byzantine row's distance falls by at most D,
  and an honest row's grows by at least :math:`D - 2 \|x_i - \mu\|`. Hence
  :math:`(h - f) D \le 2 \sum_S \|x_i - \mu\| \le 2 h \sqrt V`, and h / (n - 2f)
  is 1 + f / (n - 2f).

  The rule here stops after `num_iters` smoothed steps; the bound is that of
  their limit.

  References:
    Allouah et al. 2023.
  """
  return 4 * ((n - f) / (n - 2 * f)) ** 2


def medoid(n: int, f: int) -> float:
  r"""Medoid: :math:`\big((n + \sqrt 2 (n - f)) / (n - 2f)\big)^2`.

  The medoid's sum of distances is at most that of each honest row i. Its
  distance to an honest row j is at least :math:`D - \|x_j - \mu\|`, and to a
  Byzantine row at least that of row i, less :math:`D + \|x_i - \mu\|`. So
  :math:`(h - f) D \le \sum_S \|x_j - \mu\| + f \|x_i - \mu\| + \sum_{j \in S}
  \|x_i - x_j\|`. The mean of the right side over all i in S is at most
  :math:`(h + f + \sqrt 2 h) \sqrt V`, because the mean squared distance of two
  honest rows is 2 V. Derived here, for distances that are not squared
  (`power=1`, the default).
  """
  return ((n + math.sqrt(2) * (n - f)) / (n - 2 * f)) ** 2


def krum(n: int, f: int) -> float:
  r"""Krum: :math:`(\sqrt{a h} + \sqrt{h - c})^2 / c` with c = n - 2f - 1.

  Here a = 2 q / (q + 1), for the q = n - f - 2 neighbours of Blanchard et al.
  An honest row's score is at most q / (h - 1) times the sum of its squared
  distances to the honest rows; the mean of these sums over S is 2 h V. As h - 1
  = q + 1, the least score is at most a h V. At least c honest rows are the
  selected row or among its neighbours. The root mean square of the selected
  row's distances from them is at most :math:`\sqrt{a h V / c}`, and their mean
  is within :math:`\sqrt{V (h - c) / c}` of :math:`\mu`.

  The order is that of Allouah et al. 2023, who sum over n - f neighbours, the
  row itself included. The same steps then give :math:`6 (1 + f / (n - 2f))`.
  """
  h, q, c = n - f, n - f - 2, n - 2 * f - 1
  a = 2 * q / (q + 1)
  return (math.sqrt(a * h) + math.sqrt(h - c)) ** 2 / c


def multi_krum(n: int, f: int) -> float:
  """Multi-Krum has the bound of Krum, for every m from 1 to n - f.

  The mean of the m lowest scores is at most the mean of the honest scores,
  which the bound of Krum uses. The rest follows because the squared distance of
  a mean is at most the mean squared distance. Derived here; Bareilles et al.
  2026 (arXiv:2602.03899) have bounds that depend on m.
  """
  return krum(n, f)


def mda(n: int, f: int) -> float:
  r"""Minimum-diameter averaging: 8 f^2 / (n - f).

  The selected set T and S share a row, and the diameter of T is at most that of
  S, which is at most :math:`\sqrt{2 h V}`. So every row of T is within twice
  that of every row of S. The two means differ in at most f pairs of rows, each
  divided by h: :math:`D \le (2 f / h) \sqrt{2 h V}`.

  References:
    Farhadkhani et al., Byzantine machine learning made easy by resilient
    averaging of momentums, ICML 2022, prove the factor 2 f / (n - f) of the
    honest diameter.
  """
  return 8 * f**2 / (n - f)


def smea(n: int, f: int) -> float:
  r"""Smallest maximum eigenvalue averaging: 4 f / (n - 2f).

  In the direction of the difference of the means of S and of the selected set
  T, both sets have a variance of at most :math:`\lambda`, the largest
  eigenvalue of the covariance of S. The at least n - 2f rows that they share
  are c rows of each, so their mean is within :math:`\sqrt{\lambda f / (n -
  2f)}` of both means in this direction: :math:`D \le 2 \sqrt{\lambda f / (n -
  2f)}`. And :math:`\lambda \le V`.

  Derived here. Allouah et al., On the privacy-robustness-utility trilemma in
  distributed learning, ICML 2023, introduce the rule, and bound the distance by
  :math:`\lambda`, too.
  """
  return 4 * f / (n - 2 * f)


def meamed(n: int, f: int) -> float:
  r"""MeaMed: :math:`4 (\sqrt{f / h} + (f / h) \sqrt\kappa)^2`.

  Here :math:`\kappa` is the median's.

  In one dimension, pair each entry t that is kept and not in S, of which there
  are at most f, with an entry s of S that is not kept. Since t is as near to
  the centre m as s, :math:`|x_t - x_s| \le 2 |x_s - \mu| + 2 |m - \mu|`. The
  mean of the kept entries differs from :math:`\mu` by the sum over the pairs,
  divided by h; and f terms :math:`|x_s - \mu|` sum to at most :math:`\sqrt{f h
  V}`. Derived here.
  """
  return _nearest(n, f, median(n, f))


def phocas(n: int, f: int) -> float:
  """Phocas: as MeaMed, with the trimmed mean as the centre. Derived here."""
  return _nearest(n, f, trimmed_mean(n, f))


def _nearest(n, f, kappa):
  share = f / (n - f)
  return 4 * (math.sqrt(share) + share * math.sqrt(kappa)) ** 2


def bulyan(n: int, f: int) -> float:
  r"""Bulyan: :math:`(\sqrt\kappa + \sqrt{h (1 + \kappa) / (n - 3f)})^2`.

  In one dimension, n - 2f entries are selected, at most f of them Byzantine. As
  for the median, their median m is within :math:`\sqrt{\kappa V}` of
  :math:`\mu`, where :math:`\kappa = (h - k) / k` and k = floor(n/2) + 1 - 2f.
  The n - 4f entries nearest to m have a mean square distance from m of at most
  that of the n - 3f or more honest ones selected, which is at most :math:`h (V
  + (m - \mu)^2) / (n - 3f)`. Derived here, whatever selects the rows; for n - f
  - 2 neighbours as for all.
  """
  h, k = n - f, n // 2 + 1 - 2 * f
  kappa = (h - k) / k
  return (math.sqrt(kappa) + math.sqrt(h * (1 + kappa) / (n - 3 * f))) ** 2


def bulyan_trimmed(n: int, f: int, m: int, trim: int) -> float:
  """Bulyan with a trimmed mean: (h - c) / c, with c = m - 2 trim.

  As for the trimmed mean, the result lies between means of c honest entries, if
  at least f entries are trimmed on each side. Derived here.
  """
  whole(1)('m', m)
  whole(0)('trim', trim)
  if not (f <= trim and 2 * trim < m <= n):
    raise ValueError(
      'bulyan_trimmed needs f <= trim and 2 trim < m <= n, got '
      f'n={n}, f={f}, m={m}, trim={trim}'
    )
  c = m - 2 * trim
  return (n - f - c) / c


def monna(n: int, f: int) -> float:
  r"""MoNNA: 4 f, if its pivot p is in S.

  As for `nnm`, :math:`D^2 \le (4 f / h^2) \sum_{s \in S} \|x_s - x_p\|^2`. The
  sum is :math:`h V + h \|x_p - \mu\|^2 \le h^2 V`. Derived here; the pivot is
  trusted by definition, so that S with any n - f rows has no bound.
  """
  return 4.0 * f


def mean(n: int, f: int) -> float:
  """The mean has no bound for f > 0: one row moves it arbitrarily far."""
  return math.inf if f else 0.0


def cge(n: int, f: int) -> float:
  """CGE has no bound for f > 0, because it depends on where zero is.

  If all honest rows are equal and not zero, V = 0, and shorter Byzantine rows
  are averaged with them. (Its paper assumes a convex cost with a minimum that
  all honest clients share.)
  """
  return math.inf if f else 0.0


def nnm(kappa: float, n: int, f: int) -> float:
  r"""Nearest-neighbour mixing: :math:`(8 f / (n - f)) (\kappa + 1)`.

  Let :math:`y_i` be the mean of the h rows nearest to :math:`x_i`, i in S. The
  rows that are not in S, at most f, are no farther from :math:`x_i` than those
  of S that they displace: :math:`\|y_i - \mu\| \le (2 / h) \sum_s \|x_s -
  x_i\|` over the latter. So the mean of :math:`\|y_i - \mu\|^2` over S is at
  most :math:`(4 f / h^2) (1 / h) \sum_{i, s \in S} \|x_s - x_i\|^2 = 8 f V /
  h`. This mean is the variance of the y in S plus the squared distance of their
  mean from :math:`\mu`. By Cauchy-Schwarz, :math:`D^2` is at most :math:`\kappa
  + 1` times their sum.

  References:
    Allouah et al. 2023, whose constant this is.
  """
  return 8 * f / (n - f) * (kappa + 1)


def arc(kappa: float, n: int, f: int) -> float:
  r"""Adaptive robust clipping: :math:`\kappa + 2 f / (n - 2f)`.

  The constant is quoted from works that build on the theorem, which agree with
  its form :math:`3 \kappa`; it was not checked against the paper itself. The
  paper also shows (Lemma 3.1) that a clip to a fixed threshold leaves no bound.

  References:
    Allouah et al., Adaptive gradient clipping for robust federated learning,
    ICLR 2025, Theorem 3.2.
  """
  return kappa + 2 * f / (n - 2 * f)


BOUNDS: Registry[Callable[..., float]] = Registry(
  'bound',
  (
    bulyan,
    bulyan_trimmed,
    cge,
    geometric_median,
    krum,
    mda,
    meamed,
    mean,
    median,
    medoid,
    monna,
    multi_krum,
    phocas,
    smea,
    trimmed_mean,
  ),
  brought=('n', 'f'),
)
"""Functions `(n, f, **options) -> kappa` by the name of the rule."""

PRE_BOUNDS: Registry[Callable[..., float]] = Registry(
  'bound', (nnm, arc), brought=('kappa', 'n', 'f')
)
"""Functions `(kappa, n, f) -> kappa`, from a rule's bound to the chain's."""

_UNBOUNDED = ('mean', 'cge')
