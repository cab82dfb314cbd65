"""The soft Krum mean whose distance the server learns."""

import numpy as np

from oracles.mixtures import mixed
from oracles.rows import clip_factors, rejected


def learned_distance(
  rows, state, *, server_update, f, share=0.5, temperature=0.1, rate=100.0
):
  """Returns the update, and theta after a step along the cosine.

  The derivative is a central difference. The state is theta, None before the
  first round.
  """
  theta = np.log(share / (1 - share)) if state is None else state
  n, good = len(rows), np.flatnonzero(~rejected(rows))
  if not len(good):
    return np.full(rows.shape[1], np.nan), theta
  clipped = rows[good] * clip_factors(rows)[good, None]

  def aggregate(theta):
    between = mixed(rows, 1 / (1 + np.exp(-theta)), f)
    scores = np.zeros(n)
    for i in good:
      others = np.sort(np.delete(between[i], i))
      scores[i] = np.mean(others[: n - f - 2])
    if not np.all(np.isfinite(scores)):
      scores = np.zeros(n)
    soft = np.exp(-(scores[good] - np.min(scores[good])) / temperature)
    return (soft / np.sum(soft)) @ clipped

  def agreement(theta):
    update = aggregate(theta)
    size = np.linalg.norm(update) * np.linalg.norm(server_update)
    return update @ server_update / size if size else 0.0

  slope = (agreement(theta + 1e-4) - agreement(theta - 1e-4)) / 2e-4
  return aggregate(theta), np.clip(theta + np.clip(rate * slope, -1, 1), -5, 5)
