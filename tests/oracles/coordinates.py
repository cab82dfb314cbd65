"""Rules on every coordinate: rows -> one row `[d]`."""

import numpy as np


def in_order(rows):
  """Every column sorted, NaN with +inf."""
  return np.sort(np.where(np.isnan(rows), np.inf, rows), axis=0)


def coordinate_median(rows, *, median='interpolated'):
  ordered = in_order(rows)
  low, high = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
  with np.errstate(invalid='ignore'):
    middle = (low + high) / 2
  return {'lower': low, 'upper': high, 'interpolated': middle}[median]


def trimmed_mean(rows, *, f, f_above=None):
  """Without the f lowest and the f_above highest entries of every column."""
  f_above = f if f_above is None else f_above
  return np.mean(in_order(rows)[f : len(rows) - f_above], axis=0)


def nearest_to_the_median(rows, count):
  """`[n, d]` weights: `count` entries a column, the last ones sharing a tie."""
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - coordinate_median(rows))
  gaps = np.where(np.isfinite(rows), gaps, np.inf)
  last = np.sort(gaps, axis=0)[count - 1]
  before = gaps < last
  places = count - np.sum(before, axis=0)
  tied = gaps == last
  return before + tied * (places / np.sum(tied, axis=0))


def mean_of_nearest(rows, count):
  """The mean of the `count` entries that are nearest to the column's median."""
  weights = nearest_to_the_median(rows, count)
  used = np.where(weights > 0, rows, 0)
  return np.sum(weights * used, axis=0) / count


def doubtful_columns(rows, count):
  """Where rounding may change who is among the `count` nearest.

  The last one in and the first one out are equally far, within float32's
  error, and differ in value.
  """
  if count == len(rows):
    return np.zeros(rows.shape[1], bool)
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - coordinate_median(rows))
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


def sign_majority(rows, *, theta):
  """RLR: the mean, turned around where fewer than theta clients agree."""
  agree = np.abs(np.sum(np.sign(rows), axis=0)) >= theta
  return np.where(agree, 1, -1) * np.mean(rows, axis=0)


COLUMNS = {
  'median': coordinate_median,
  'trimmed_mean': trimmed_mean,
  'meamed': meamed,
  'sign_majority': sign_majority,
}
