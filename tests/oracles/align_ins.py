"""AlignIns: the clients whose directions and signs are like most others'."""

import numpy as np

from oracles.rows import (
  clip_factors,
  cosine_similarity,
  equal_weights,
  rejected,
  squared_norm,
)


def sign_alignment(row, principal, k):
  """Returns the share of the k largest entries that have the principal sign.

  Entries that tie for the last places share these places.
  """
  if not len(row):
    return 1.0
  sizes = np.abs(row)
  last = np.sort(sizes)[-k]
  above, tied = sizes > last, sizes == last
  agrees = np.sign(row) == principal
  places = k - np.sum(above)
  return (np.sum(agrees & above) + places * np.mean(agrees[tied])) / k


def alignments(rows, *, params, top_fraction=0.3):
  """Returns the cosines with the parameters and the alignments of signs.

  Each is `[m]`, of the m rows that are not rejected.
  """
  good = rows[~rejected(rows)]
  k = max(1, int(top_fraction * rows.shape[1]))
  principal = np.sign(np.sum(np.sign(good), axis=0))
  lost = not np.isfinite(squared_norm(params))
  cosines = [0 if lost else cosine_similarity(row, params) for row in good]
  signs = [sign_alignment(row, principal, k) for row in good]
  return np.array(cosines), np.array(signs)


def align_ins_kept(
  rows, *, params, top_fraction=0.3, lambda_s=1.0, lambda_c=1.0, slack=0.0
):
  """Returns the mask of the clients within both bounds, widened by slack."""
  kept = ~rejected(rows)
  good = kept.copy()
  if not np.any(good):
    return kept
  values = alignments(rows, params=params, top_fraction=top_fraction)
  for value, bound in zip(values, (lambda_c, lambda_s), strict=True):
    limit = bound * np.std(value) if np.std(value) > 0 else 0
    kept[good] &= np.abs(value - np.median(value)) <= limit + slack
  return kept


def align_ins_factors(rows, kept):
  """Returns the weights of the mean over the kept rows, which are clipped."""
  share = np.zeros(len(rows))
  if np.all(rejected(rows)):
    return share * np.nan
  if np.any(kept):
    share = equal_weights(len(rows), np.flatnonzero(kept))
    share[kept] *= clip_factors(rows[kept], 'lower')
  return share


def align_ins_weights(rows, **hyper):
  return align_ins_factors(rows, align_ins_kept(rows, **hyper))
