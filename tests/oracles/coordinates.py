"""Coordinate-wise rules: functions from rows to one row `[d]`."""

import numpy as np


def in_order(rows):
  """Sorts every column, with NaN as +inf."""
  return np.sort(np.where(np.isnan(rows), np.inf, rows), axis=0)


def coordinate_median(rows, *, median='interpolated'):
  ordered = in_order(rows)
  low, high = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
  with np.errstate(invalid='ignore'):
    middle = (low + high) / 2
  return {'lower': low, 'upper': high, 'interpolated': middle}[median]


def trimmed_mean(rows, *, f, f_above=None):
  """Averages without the f lowest and the f_above highest of every column."""
  f_above = f if f_above is None else f_above
  return np.mean(in_order(rows)[f : len(rows) - f_above], axis=0)


def nearest_to(middle, rows, count):
  """Returns `[n, d]` weights on the `count` nearest entries of every column.

  They are the nearest to `middle`, `[d]`. Entries that tie for the last places
  share these places.
  """
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - middle)
  gaps = np.where(np.isfinite(rows), gaps, np.inf)
  last = np.sort(gaps, axis=0)[count - 1]
  before = gaps < last
  places = count - np.sum(before, axis=0)
  tied = gaps == last
  return before + tied * (places / np.sum(tied, axis=0))


def mean_of_nearest(rows, count, middle=None):
  """Averages the `count` entries of every column nearest to its middle.

  The middle, `[d]`, is the median unless it is given.
  """
  middle = coordinate_median(rows) if middle is None else middle
  weights = nearest_to(middle, rows, count)
  used = np.where(weights > 0, rows, 0)
  return np.sum(weights * used, axis=0) / count


def doubtful_columns(rows, count, middle=None):
  """Returns a mask of columns where rounding may decide the `count` nearest.

  In these columns, the last entry included and the first one left out are
  equally far from the middle, up to float32's error, and differ in value. The
  middle, `[d]`, is the median unless it is given.
  """
  middle = coordinate_median(rows) if middle is None else middle
  if count == len(rows):
    return np.zeros(rows.shape[1], bool)
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - middle)
  gaps = np.where(np.isfinite(rows), gaps, np.inf)
  order = np.argsort(gaps, axis=0)
  near = np.take_along_axis(rows, order, 0)
  gaps = np.take_along_axis(gaps, order, 0)
  size = np.max(np.abs(near[: count + 1]), axis=0)
  with np.errstate(invalid='ignore'):
    close = gaps[count] - gaps[count - 1] <= 1e-6 * size
  return close & (near[count] != near[count - 1])


def meamed(rows, *, f):
  return mean_of_nearest(rows, len(rows) - f)


def phocas(rows, *, f):
  return mean_of_nearest(rows, len(rows) - f, trimmed_mean(rows, f=f))


def sign_majority(rows, *, theta):
  """Returns RLR: the mean, negated where fewer than theta clients agree."""
  agree = np.abs(np.sum(np.sign(rows), axis=0)) >= theta
  return np.where(agree, 1, -1) * np.mean(rows, axis=0)


COLUMNS = {
  'median': coordinate_median,
  'trimmed_mean': trimmed_mean,
  'meamed': meamed,
  'phocas': phocas,
  'sign_majority': sign_majority,
}
