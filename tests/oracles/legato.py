"""LEGATO: Algorithm 2 of the paper, with the log of all workers' gradients."""

import math

import numpy as np

from oracles.rows import rejected, squared_norm
from oracles.trees import groups, leaves, rebuild, rows_of


def legato(
  tree,
  log,
  *,
  window,
  by='leaf',
  norm='frobenius',
  normalize='sum',
  divisor='past',
):
  """Runs one round; returns the update, the log and the factors `[layers]`.

  The log lists the last rounds, oldest first, this one included. A round is a
  pair: the gradients of all workers, a list of arrays `[n, ...]`, and the mask
  `[n]` of workers that are not rejected. The log is empty at first. A round in
  which all workers are rejected leaves the log unchanged.
  """
  arrays = [array for _, array in leaves(tree)]
  layers = groups(tree, by)
  now = arrays, ~rejected(rows_of(arrays))
  if np.any(now[1]):
    log = [*log, now]  # lines 25 to 27
    log = log[-window:]
  factors = legato_factors(legato_norms(log, layers, norm), normalize)
  if not np.any(now[1]):
    nothing = [np.full(array.shape[1:], np.nan) for array in arrays]
    return rebuild(tree, nothing), log, factors
  past = {'past': len(log) - 1, 'window': window - 1}[divisor]
  total = [np.zeros(array.shape[1:]) for array in arrays]
  for worker in range(len(now[1])):  # lines 18 to 22
    for w, positions in zip(factors, layers, strict=True):
      for p in positions:
        total[p] += w * legato_gradient(now, worker, p)
        for before in log[:-1]:
          gradient = legato_gradient(before, worker, p)
          total[p] += (1 - w) / past * gradient
  update = [t / len(now[1]) for t in total]  # line 23
  return rebuild(tree, update), log, factors


def legato_gradient(entry, worker, position):
  """Returns one worker's gradient of one leaf in one round of the log.

  The gradient of a rejected worker is zero, and the others are scaled up, so
  that the mean over all workers is the mean over those not rejected.
  """
  arrays, accepted = entry
  if not accepted[worker]:
    return np.zeros(arrays[position].shape[1:])
  return arrays[position][worker] * len(accepted) / np.sum(accepted)


def legato_norms(log, layers, norm='frobenius'):
  """Returns the `[rounds, layers]` norms of the log (lines 7 to 14, Eq. 2)."""
  order = {'frobenius': 'fro', 'spectral': 2}[norm]
  table = np.zeros((len(log), len(layers)))
  for i, (arrays, accepted) in enumerate(log):
    x = [math.sqrt(squared_norm(row)) for row in rows_of(arrays)[accepted]]
    for layer, positions in enumerate(layers):
      matrix = rows_of([arrays[p] for p in positions])[accepted]
      if matrix.size and sum(x) > 0:
        table[i, layer] = np.linalg.norm(matrix, order) / sum(x)
  return table


def legato_factors(table, normalize='sum', floor=1e-6):
  """Returns `[layers]` factors from `[rounds, layers]` norms (lines 15 to 17).

  The floor, relative to the largest of the layers' mean norms, prevents a
  division by zero for a layer with constant norms.
  """
  if len(table) < 2:
    return np.ones(table.shape[1])
  deviation = np.sqrt(np.var(table, axis=0))
  deviation = deviation + floor * np.max(np.mean(table, axis=0))
  if not np.any(deviation):  # all updates are zero
    deviation = np.ones(table.shape[1])
  factors = 1 / deviation
  return factors / {'sum': np.sum, 'max': np.max}[normalize](factors)
