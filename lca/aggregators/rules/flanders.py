"""FLANDERS: keeps the clients whose models are nearest to their forecast."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.selection import (
  check_brought,
  check_integers,
  check_population,
  of_population,
  select_lowest,
)
from lca.stacked import geometry, sums
from lca.stacked.subsample import Subsample
from lca.stacked.trees import check_one_update
from lca.typing import Update, Updates


class FlandersState(NamedTuple):
  """The state of FLANDERS with C clients, w rounds and d coordinates.

  Attributes:
    models: `[w, C, d]`, the clients' models of the last rounds, the newest
      last; of clients that were absent or not kept, the new model.
    columns: `[d]`, the coordinates, as columns of the leaves.
    count: `[]`, the number of rounds so far.
  """

  models: jax.Array
  columns: jax.Array
  count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def flanders(
  *,
  f: int,
  num_clients: int,
  window: int = 2,
  num_iters: int = 100,
  alpha: float = 1.0,
  beta: float = 1.0,
  subsample_dim: int | None = 500,
) -> Aggregator:
  r"""FLANDERS: averages the clients whose models are nearest to a forecast.

  The models that n clients have sent in a round, :math:`w + x_i`, are the rows
  of a matrix :math:`\Theta_t`, of d coordinates. The matrices of the last w
  rounds are taken for a matrix autoregression of order 1,

  .. math:: \Theta_t = A\, \Theta_{t-1} B + E_t

  with A `[n, n]` and B `[d, d]`, which minimise

  .. math:: \sum_t \|\Theta_t - A \Theta_{t-1} B\|^2
      + \alpha \|A\|^2 + \beta \|B\|^2.

  They are found by alternating least squares, `num_iters` times for each, from
  B = I. The score of a client is the distance of its model to its row of the
  forecast, :math:`A \Theta_{t-1} B`. The n - f clients of lowest score are
  averaged; f may be a majority.

  Only the clients that are kept enter the history with their models. For all
  others, and for those that take no part in a round, the model after that round
  stands in. Before the first round all clients count as having sent the
  model that they start from: the first round keeps about the n - f shortest
  updates.

  B is never formed: in terms of the models' inner products, a step solves
  one `[(w - 1) n, (w - 1) n]` and one `[n, n]` system. The matrices are divided
  by their largest entry, which alpha and beta are relative to.

  In a tie the lowest index is kept. Rejected rows (see `lca.geometry`) have
  score +inf. If fewer than n - f clients are left, these are averaged; if none
  is left, the update is NaN, and the state stays. With the default ridge the
  forecasts of all clients are close to the mean of the last models: what
  tells the clients apart is their distance to that mean, whatever their own
  past. Attackers that stay near it are kept. With a ridge far below 1, float32
  is less exact: the forecast is off by 1e-4 for 1e-3, and by 5e-3 for 1e-6, in
  units of the largest entry.

  Promise (docs/rules.md): finite. An update of any length is kept if it is long
  in other coordinates than the d that are drawn.

  From the paper come the autoregression, the scores, the selection, and the
  replacement of clients that are not kept. From the code of its first author
  (Flower's baseline `flanders`) come the defaults, the ridge, the unit of the
  largest entry, and the replacement by the new model.
  docs/published-differences.md says what that code does otherwise.

  Args:
    f: number of clients to leave out.
    num_clients: C, the number of clients in the population. The update is NaN
      in a round with an id of C or more.
    window: w, the number of past rounds.
    num_iters: steps of alternating least squares.
    alpha: penalty of A.
    beta: penalty of B.
    subsample_dim: d, the number of coordinates, which are drawn in the first
      round and stay; at most all of them. Every leaf contributes in proportion
      to its size. None takes all coordinates.

  Returns:
    An Aggregator with a `FlandersState`. Its `update` needs `params` and
    `client_ids`, and a `key` unless all coordinates are taken. `lca.explain`
    reports the clients' `weights`, `scores`, `selected` and `rejected`.

  Raises:
    ValueError: unless f >= 0, num_clients >= 1, window >= 2, num_iters >= 1,
      subsample_dim >= 1, and alpha and beta are finite and positive. The update
      raises it unless f < n <= num_clients, or if it lacks an argument.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> aggregator = lca.flanders(f=2, num_clients=3)
    >>> state = aggregator.init(jnp.zeros(2))
    >>> update, state = jax.jit(aggregator.update)(
    ...   jnp.array([[1., 1.], [9., 9.], [-9., 9.]]), state,
    ...   params=jnp.ones(2), client_ids=jnp.arange(3))
    >>> print(update)
    [1. 1.]

  References:
    Gabrielli, Belli, Matrullo, Miori and Tolomei, Protecting federated learning
    from extreme model poisoning attacks via multidimensional time series
    anomaly detection, 2023 (arXiv:2303.16668).
  """
  check_integers(
    'flanders', f=f, num_clients=num_clients, window=window, num_iters=num_iters
  )
  if subsample_dim is not None:
    check_integers('flanders', subsample_dim=subsample_dim)
  if (
    f < 0
    or min(num_clients, num_iters) < 1
    or window < 2
    or (subsample_dim is not None and subsample_dim < 1)
  ):
    raise ValueError(
      'flanders needs f >= 0, num_clients, num_iters and subsample_dim >= 1, '
      f'and window >= 2, got f={f}, num_clients={num_clients}, '
      f'num_iters={num_iters}, subsample_dim={subsample_dim}, window={window}'
    )
  for name, value in (('alpha', alpha), ('beta', beta)):
    if not 0 < value < math.inf:
      raise ValueError(
        f'flanders needs a finite {name} > 0, got {name}={value}'
      )

  def init(params):
    sample = _sample(params, subsample_dim)
    dtype = sums.wide(jnp.result_type(*jax.tree.leaves(params)))
    return FlandersState(
      models=jnp.zeros((window, num_clients, len(sample)), dtype),
      columns=jnp.zeros(len(sample), jnp.int32),
      count=jnp.zeros((), jnp.int32),
    )

  def explain(updates, state, **brought):
    check_brought('flanders', brought, 'params', 'client_ids')
    params, ids = lax.stop_gradient(brought['params']), brought['client_ids']
    check_one_update('params', params, updates)
    n = geometry.num_clients(updates)
    check_population('flanders', n, num_clients)
    if f >= n:
      raise ValueError(f'flanders needs f < n, got n={n}, f={f}')
    sample, key = _sample(params, subsample_dim), None
    if not sample.everything:
      check_brought('flanders', brought, 'key')
      key = brought['key']
    first = state.count == 0
    columns = jnp.where(first, sample.draw(key), state.columns)

    def drawn(updates: Updates) -> jax.Array:
      return jnp.concatenate(sample.take(updates, columns), axis=1)

    rows = lax.stop_gradient(updates)
    gram = geometry.norms_gram(rows)
    rejected = geometry.rejected_rows(gram)
    model = drawn(geometry.one_client(params)).astype(state.models.dtype)
    models = model + drawn(rows)
    history = jnp.where(first, model, state.models)
    expected = forecast(history[:, ids], alpha, beta, num_iters)
    scores = jnp.sqrt(jnp.sum((models - expected) ** 2, axis=1))
    scores = jnp.where(rejected | jnp.isnan(scores), jnp.inf, scores)
    verdict = of_population(
      select_lowest(gram, scores, n - f), ids, num_clients
    )
    update = geometry.mix(updates, verdict.weights)

    moved = model + drawn(geometry.one_client(lax.stop_gradient(update)))
    kept = jnp.where(verdict.weights > 0, ids, num_clients)  # others: dropped
    newest = jnp.broadcast_to(moved, history.shape[1:])
    newest = newest.at[kept].set(models, mode='drop')
    after = FlandersState(
      models=jnp.concatenate([history, newest[None]])[-window:],
      columns=columns,
      count=state.count + 1,
    )
    lost = jnp.all(jnp.isnan(verdict.weights))
    state = jax.tree.map(lambda a, s: jnp.where(lost, s, a), after, state)
    return update, state, verdict.info(gram)

  return Aggregator(init, ExplainedUpdate(explain))


def _sample(params: Update, dim: int | None) -> Subsample:
  """Returns a draw of `dim` coordinates, or of all for None."""
  sizes = [math.prod(jnp.shape(x)) for x in jax.tree.leaves(params)]
  return Subsample(sizes, sum(sizes) if dim is None else dim)


def forecast(
  series: jax.Array, alpha: float, beta: float, num_iters: int
) -> jax.Array:
  r"""Returns the matrix that follows a series, by an autoregression.

  Given A, let Z be the matrices :math:`A \Theta_{t-1}` on top of each other,
  and Y those that follow. Then :math:`B = Z^T (Z Z^T + \beta I)^{-1} Y`, and
  the predicted :math:`\Theta_{t-1} B` are the rows :math:`\Theta_{t-1} Z^T (Z
  Z^T + \beta I)^{-1}` of weights on Y.

  Args:
    series: `[w, n, d]`, the matrices of w rounds.
    alpha: penalty of A; see `flanders`.
    beta: penalty of B.
    num_iters: steps of alternating least squares.

  Returns:
    `[n, d]`.
  """
  w, n, _ = series.shape
  unit = jnp.max(jnp.abs(series), initial=0)
  series = series / jnp.where(unit > 0, unit, 1)
  rows = series.reshape(w * n, -1)
  gram = sums.dot(rows, rows.T).reshape(w, n, w, n)
  before, after = gram[:, :, :-1], gram[:, :, 1:].reshape(w, n, -1)
  targets = after[1:].reshape((w - 1) * n, -1)  # Y Y^T

  def ridge(products, cross, penalty):  # cross (products + penalty I)^-1
    products += penalty * jnp.eye(len(products), dtype=products.dtype)
    # On CPU a solve with n right sides takes 80 times as long as an inverse
    # (jaxlib 0.10). A second step removes most of the inverse's error.
    inverse = jnp.linalg.inv(products)
    solved = sums.dot(cross, inverse)
    return solved + sums.dot(cross - sums.dot(solved, products), inverse)

  def predicted(a):  # [w, n, (w - 1) n], the weights on Y
    cross = _dot('tjsk,ik->tjsi', before, a)
    inner = _dot('ij,sjtk->sitk', a, cross[:-1]).reshape(targets.shape)
    return ridge(inner, cross.reshape(w * n, -1), beta).reshape(w, n, -1)

  def step(_, a):
    weights = predicted(a)[:-1]
    cross = _dot('tik,tjk->ij', after[1:], weights)
    mixed = _dot('tik,kl->til', weights, targets)
    return ridge(_dot('til,tjl->ij', mixed, weights), cross, alpha)

  # The first step, with B = I.
  t = jnp.arange(w - 1)
  first = ridge(
    jnp.sum(gram[t, :, t], axis=0), jnp.sum(gram[t + 1, :, t], axis=0), alpha
  )
  a = lax.fori_loop(1, num_iters, step, first)
  weights = sums.dot(a, predicted(a)[-1])
  return unit * sums.dot(weights, rows[n:])


def _dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns an Einstein sum of products in full float32 or wider."""
  return jnp.einsum(subscripts, x, y, precision=lax.Precision.HIGHEST)
