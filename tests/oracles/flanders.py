"""FLANDERS: how far models are from their forecast by an autoregression."""

import numpy as np

from oracles.rows import rejected


def autoregression(series, *, alpha, beta, num_iters):
  """Returns A and B of `X_t = A X_(t-1) B`, by alternating ridge regressions.

  Args:
    series: matrices `[n, d]`, a client's model in each row.
    alpha: penalty of A's squared entries.
    beta: penalty of B's squared entries.
    num_iters: how often A and B are each solved for; B starts as the identity.
  """
  before, after = series[:-1], series[1:]
  n, d = series[0].shape
  a, b = np.eye(n), np.eye(d)
  for _ in range(num_iters):
    seen = [x @ b for x in before]
    cross = sum(y @ z.T for y, z in zip(after, seen, strict=True))
    a = cross @ np.linalg.inv(sum(z @ z.T for z in seen) + alpha * np.eye(n))
    seen = [a @ x for x in before]
    cross = sum(z.T @ y for y, z in zip(after, seen, strict=True))
    b = np.linalg.inv(sum(z.T @ z for z in seen) + beta * np.eye(d)) @ cross
  return a, b


class Flanders:
  """The rounds of FLANDERS, on all coordinates."""

  def __init__(self, f, *, window=2, **regression):
    self.f, self.window, self.regression = f, window, regression
    self.past = []  # by round: the models of clients, and of all others

  def scores(self, rows, model, ids):
    """Returns the distances of models to their forecasts; +inf if rejected."""
    past = [({}, model)] * self.window if not self.past else self.past
    self.past = past[-self.window :]
    series = [
      np.array([sent.get(i, other) for i in ids]) for sent, other in self.past
    ]
    unit = np.max(np.abs(series)) or 1.0
    a, b = autoregression([x / unit for x in series], **self.regression)
    with np.errstate(invalid='ignore'):
      gaps = np.linalg.norm(model + rows - a @ series[-1] @ b, axis=1)
    return np.where(rejected(rows), np.inf, gaps)

  def round(self, rows, model, ids):
    """Takes a round in; returns the scores, who is kept, and their mean."""
    scores, bad = self.scores(rows, model, ids), rejected(rows)
    order = [i for i in np.argsort(scores, kind='stable') if not bad[i]]
    kept = sorted(order[: len(rows) - self.f])
    update = np.mean(rows[kept], axis=0)
    sent = {ids[i]: model + rows[i] for i in kept}
    self.past.append((sent, model + update))
    return scores, kept, update
