"""DeepSight: clusters of clients whose updates come from similar labels."""

import numpy as np

from oracles.hdbscan import hdbscan
from oracles.rows import clip_factors, distance_matrix, equal_weights, rejected


def energies(kernel, bias):
  """Returns `[n, K]` update energies of kernels `[n, H, K]` and biases."""
  return np.abs(bias) + np.sum(np.abs(kernel), axis=1)


def normalized_energies(energy):
  """Returns the NEUPs; those of a client that changes nothing are 0."""
  total = np.sum(energy**2, axis=1, keepdims=True)
  return np.divide(energy**2, total, out=np.zeros_like(energy), where=total > 0)


def threshold_exceedings(shares):
  """Returns how many classes are above the threshold, for each client."""
  factor = max(0.01, 1 / shares.shape[1])
  return np.array([np.sum(row > factor * np.max(row)) for row in shares])


def division_differences(before, after):
  """Returns `[n, K]` mean ratios of probabilities.

  `before` are the model's probabilities `[inputs, K]`, and `after` those of the
  clients, `[n, inputs, K]`.
  """
  return np.mean(after / before, axis=1)


def euclidean(points):
  return np.linalg.norm(points[:, None] - points, axis=-1)


def clusters_of(matrix, good, **options):
  """Returns HDBSCAN's labels of the good clients, and -1 for the others."""
  labels = np.full(len(matrix), -1)
  if len(good):
    labels[good] = hdbscan(matrix[np.ix_(good, good)], **options)
  return labels


def deep_sight_accepted(
  rows, kernel, bias, differences, *, accept_noise=True, **options
):
  """Returns the accepted clients' indices.

  `differences` are the DDifs for each set of inputs, `[sets, n, K]`; `options`
  are those of `hdbscan`.
  """
  n = len(rows)
  good = np.flatnonzero(~rejected(rows))
  shares = normalized_energies(energies(kernel, bias))
  exceedings = threshold_exceedings(shares)
  boundary = np.median(exceedings[good]) / 2 if len(good) else 0
  suspicious = exceedings <= boundary

  def different(matrix, members=good):
    labels = clusters_of(matrix, members, **options)
    return labels[:, None] != labels

  of_differences = np.mean(
    [
      different(
        euclidean(each),
        [i for i in good if np.all(np.isfinite(each[i]))],
      )
      for each in differences
    ],
    axis=0,
  )
  merged = np.mean(
    [
      different(distance_matrix(bias, 'cosine')),
      different(euclidean(shares)),
      of_differences,
    ],
    axis=0,
  )
  # Means of thirds and of ones have the same value only up to rounding.
  final = clusters_of(np.round(merged, 9), good, **options)
  groups = [np.flatnonzero(final == label) for label in range(n)]
  if accept_noise:
    groups += [[i] for i in good if final[i] < 0]
  accepted = [
    group
    for group in groups
    if len(group) and np.sum(suspicious[group]) / len(group) < 1 / 3
  ]
  return sorted(int(i) for group in accepted for i in group)


def deep_sight_weights(rows, *arguments, **options):
  """Returns the weights of the mean over accepted clients, of clipped rows."""
  members = deep_sight_accepted(rows, *arguments, **options)
  return equal_weights(len(rows), members) * clip_factors(rows)
