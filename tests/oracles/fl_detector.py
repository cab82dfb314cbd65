"""FLDetector: what clients are expected to send, and how far they are off."""

import numpy as np

from oracles.rows import rejected


def hessian(pairs):
  """Returns the L-BFGS matrix of pairs (s, y), one update after the other.

  Every pair changes the matrix so that it maps s to y. It starts as a multiple
  of the identity, from the newest pair.
  """
  s, y = pairs[-1]
  matrix = np.eye(len(s)) * (s @ y) / (s @ s)
  for s, y in pairs:
    image = matrix @ s
    matrix = (
      matrix - np.outer(image, image) / (s @ image) + np.outer(y, y) / (s @ y)
    )
  return matrix


class FLDetector:
  """The rounds of FLDetector, without the search for clusters."""

  def __init__(self, window):
    self.window = window
    self.models, self.aggregates = [], []
    self.sent = {}  # client -> its last round and update
    self.history = {}  # client -> its scores by round

  def scores(self, rows, model, ids):
    """Returns the scores of a round; +inf for clients without one."""
    now, bad = len(self.models), rejected(rows)
    pairs = [
      (
        self.models[t] - self.models[t - 1],
        self.aggregates[t] - self.aggregates[t - 1],
      )
      for t in range(1, now)
    ][-self.window :]
    distances = {}
    if len(pairs) == self.window:
      change = hessian(pairs)
      for row, client, lost in zip(rows, ids, bad, strict=True):
        last, update = self.sent.get(client, (-np.inf, None))
        if not lost and now - last <= self.window + 1:
          expected = update + change @ (model - self.models[last])
          distances[client] = np.linalg.norm(expected - row)
    total = sum(distances.values())
    return np.array([distances.get(i, np.inf) / (total or 1) for i in ids])

  def round(self, rows, model, ids):
    """Takes a round in; returns the mean scores and the mean of the rows."""
    new, bad = self.scores(rows, model, ids), rejected(rows)
    now = len(self.models)
    for score, client in zip(new, ids, strict=True):
      if np.isfinite(score):
        self.history.setdefault(client, {})[now] = score
    means = []
    for client in ids:
      past = self.history.get(client, {})
      recent = [past[t] for t in past if t > now - self.window]
      means.append(np.mean(recent) if recent else np.inf)
    for row, client, lost in zip(rows, ids, bad, strict=True):
      if not lost:
        self.sent[client] = now, row
    update = np.mean(rows[~bad], axis=0)
    self.models.append(model)
    self.aggregates.append(update)
    return np.array(means), update
