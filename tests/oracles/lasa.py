"""LASA: a function of the arrays of one scope."""

import numpy as np

from oracles.rows import clip_factors, median, rejected, squared_norm
from oracles.trees import rows_of


def sparsified(arrays, sparsity):
  """Zeroes each client's kernel entries up to the k-th largest magnitude."""
  kernels = [i for i, array in enumerate(arrays) if array.ndim >= 3]
  if not kernels or sparsity == 0:
    return arrays
  answer = [array.copy() for array in arrays]
  for client in range(len(arrays[0])):
    sizes = np.concatenate([np.abs(arrays[i][client]).ravel() for i in kernels])
    k = int(len(sizes) * (1 - sparsity))
    kth_largest = np.sort(sizes)[::-1][k - 1] if k else np.inf
    for i in kernels:
      row = answer[i][client]
      answer[i][client] = np.where(np.abs(row) > kth_largest, row, 0)
  return answer


def lasa(arrays, *, sparsity=0.3, norm_bound=2.0, sign_bound=1.0):
  """Clips and sparsifies; averages, per leaf, clients near the medians."""
  rows = rows_of(arrays)
  good = np.flatnonzero(~rejected(rows))
  if not len(good):
    return [np.full(array.shape[1:], np.nan) for array in arrays]
  factors = clip_factors(rows, 'lower')
  clipped = []
  for array in arrays:
    column = factors.reshape((-1,) + (1,) * (array.ndim - 1))
    clipped.append(array[good] * column[good])
  answer = []
  for array in sparsified(clipped, sparsity):
    leaf_rows = rows_of([array])
    size = np.sqrt([squared_norm(row) for row in leaf_rows])
    signs = np.sign(leaf_rows)
    nonzero = np.sum(np.abs(signs), axis=1)
    purity = np.sum(signs, axis=1) / np.maximum(nonzero, 1)
    kept = np.ones(len(leaf_rows), bool)
    for value, bound in ((size, norm_bound), (purity, sign_bound)):
      kept &= np.abs(value - median(value)) <= bound * np.std(value)
    answer.append(np.mean(array[kept] if np.any(kept) else array, axis=0))
  return answer
