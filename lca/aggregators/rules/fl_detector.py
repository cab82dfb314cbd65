"""FLDetector: excludes clients whose updates do not follow their own past."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.selection import (
  average,
  check_brought,
  check_integers,
  check_population,
  of_population,
)
from lca.stacked import geometry, sums
from lca.stacked.trees import check_one_update
from lca.typing import PyTree, Update, Updates

_FARTHEST = 1e19  # a distance that overflows counts as this one


class FLDetectorState(NamedTuple):
  """The state of FLDetector with C clients and a window of N rounds.

  Rounds are numbered from 1. The difference of round t to the round before is
  in the place t modulo N of a ring.

  Attributes:
    previous: leaves `[C, ...]`, the last update of every client.
    last_round: `[C]`, the round of that update; 0 before the first.
    model: the model of the last round, in float32 or wider.
    aggregate: the aggregate of the last round.
    models: leaves `[N, ...]`, a ring of the models' differences.
    aggregates: leaves `[N, ...]`, a ring of the aggregates' differences.
    scores: `[N, C]`, a ring of the rounds' scores, +inf without one.
    excluded: `[C]` mask of the clients that are excluded for good.
    count: `[]`, the number of rounds so far.
    wait: `[]`, rounds until the next search for attackers.
  """

  previous: PyTree
  last_round: jax.Array
  model: PyTree
  aggregate: PyTree
  models: PyTree
  aggregates: PyTree
  scores: jax.Array
  excluded: jax.Array
  count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
  wait: jax.Array


def fl_detector(
  *,
  num_clients: int,
  window: int = 10,
  start: int = 50,
  num_references: int = 10,
) -> Aggregator:
  r"""FLDetector: averages the clients whose updates can be foretold.

  The update of an honest client changes as the model moves. Client i, whose
  last update was :math:`x_i^s` for the model :math:`w_s`, is expected to send

  .. math:: \hat x_i^t = x_i^s + H\,(w_t - w_s)

  where H, the change of updates with the model, is the L-BFGS matrix of the
  last N differences of models and of aggregates. Its suspicion score is the
  mean of :math:`\|\hat x_i^t - x_i^t\| / \sum_j \|\hat x_j^t - x_j^t\|` over
  the last N rounds. From the round `start` on, the scores, scaled to [0, 1],
  are split into two clusters with the least sum of squares :math:`W_2`. If the
  gap statistic (Tibshirani et al. 2001) finds more than one cluster,

  .. math:: g_1 < g_2 - s_2, \qquad g_k = \log \bar W^*_k - \log W_k, \qquad
      s_2 = \sqrt{1 + 1 / B}\; \mathrm{std} \log W^*_2

  with :math:`W^*` of B draws of uniform numbers, then the clients in the
  cluster of the larger scores are excluded for good. The others are averaged.
  The search then waits for `start` rounds again, with new scores.

  The paper excludes clients and trains anew from the first model; here the
  training goes on with the model as it is. The paper's clients all take part in
  every round, so that s is t - 1. Here s is the last round that the client took
  part in, and a client that was absent for more than N rounds has no score in
  that round. A rejected row (see `lca.geometry`) has no score, and is left out
  of the mean; neither has a row in rounds whose history has no L-BFGS matrix,
  such as those in which the model did not move. If no row is left, the update
  is NaN, and the state stays.

  The state holds C + 2 N + 2 times the numbers of the model: the last update of
  all clients of the population, and the history. A round takes another n times
  for the predictions.

  Promise (docs/rules.md): none. An attacker counts in the mean until it is
  excluded. The search may exclude honest clients if their scores fall into two
  clusters, or if attackers are easier to foretell than honest clients.

  Args:
    num_clients: C, the number of clients in the population. The update is NaN
      in a round with an id of C or more.
    window: N.
    start: rounds before attackers are looked for, at least 2 N + 1: N for the
      first differences, and N for the scores.
    num_references: B, the number of draws of the gap statistic.

  Returns:
    An Aggregator with an `FLDetectorState`. Its `update` needs a `key`,
    `params` and `client_ids`. `lca.explain` reports the clients' `weights`,
    mean `scores` (+inf without one), `selected` and `rejected`.

  Raises:
    ValueError: unless window, num_clients and num_references are at least 1 and
      start is at least 2 window + 1. The update raises it without a key,
      `params` or `client_ids`, or if there are more clients in the round than
      num_clients.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> aggregator = lca.fl_detector(num_clients=3)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> update, state = jax.jit(aggregator.update)(
    ...   jnp.array([[1.], [2.]]), state, key=jax.random.key(0),
    ...   params=jnp.zeros(1), client_ids=jnp.array([0, 2]))
    >>> print(update, state.last_round)
    [1.5] [1 0 1]

  References:
    Zhang, Cao, Jia and Gong, FLDetector: defending federated learning against
    model poisoning attacks via detecting malicious clients, KDD 2022.
  """
  check_integers(
    'fl_detector',
    num_clients=num_clients,
    window=window,
    start=start,
    num_references=num_references,
  )
  if min(num_clients, window, num_references) < 1 or start < 2 * window + 1:
    raise ValueError(
      'fl_detector needs num_clients, window and num_references >= 1 and start '
      f'>= 2 window + 1, got num_clients={num_clients}, window={window}, '
      f'num_references={num_references}, start={start}'
    )

  def init(params):
    def zeros(*lead):
      return jax.tree.map(
        lambda x: jnp.zeros((*lead, *jnp.shape(x)), jnp.result_type(x)), params
      )

    return FLDetectorState(
      previous=zeros(num_clients),
      last_round=jnp.zeros(num_clients, jnp.int32),
      model=_wide(zeros()),
      aggregate=_wide(zeros()),
      models=_wide(zeros(window)),
      aggregates=_wide(zeros(window)),
      scores=jnp.full((window, num_clients), jnp.inf),
      excluded=jnp.zeros(num_clients, bool),
      count=jnp.zeros((), jnp.int32),
      wait=jnp.array(start - 1, jnp.int32),
    )

  def explain(updates, state, **brought):
    check_brought('fl_detector', brought, 'key', 'params', 'client_ids')
    params, ids = lax.stop_gradient(brought['params']), brought['client_ids']
    check_one_update('params', params, updates)
    n = geometry.num_clients(updates)
    check_population('fl_detector', n, num_clients)
    rows = lax.stop_gradient(updates)
    gram = geometry.norms_gram(rows)
    rejected = geometry.rejected_rows(gram)
    now = state.count + 1
    model = _wide(params)
    moved = jax.tree.map(jnp.subtract, model, state.model)

    # The suspicion scores of this round: `[C]`, +inf without one.
    before = jax.tree.map(lambda x: x[ids], state.previous)
    since = state.last_round[ids]
    full = now > window + 1  # the rings
    change, known = lax.cond(
      full,
      lambda: _expected_change(state, moved, now, since),
      lambda: (jax.tree.map(jnp.zeros_like, _wide(before)), False),
    )
    known &= (since > 0) & (now - since <= window + 1)
    miss = jax.tree.map(lambda b, c, x: b + c - x, before, change, rows)
    squares = geometry.total_squares(jax.tree.map(sums.squares, miss))
    distances = jnp.minimum(jnp.sqrt(squares), _FARTHEST)
    known &= ~rejected & ~state.excluded[ids] & ~jnp.isnan(distances)
    distances = jnp.where(known, distances, 0)
    total = jnp.sum(distances)
    new = distances / jnp.where(total > 0, total, 1)
    new = jnp.where(known & (total > 0), new, jnp.inf)
    fresh = jnp.full(num_clients, jnp.inf).at[ids].set(new)
    scores = state.scores.at[now % window].set(fresh)

    # The mean score of every client, and the search for attackers.
    has = jnp.isfinite(scores)
    count = jnp.sum(has, axis=0)
    mean = jnp.sum(jnp.where(has, scores, 0), axis=0) / jnp.maximum(count, 1)
    present = count > 0
    low = jnp.min(jnp.where(present, mean, jnp.inf))
    high = jnp.max(jnp.where(present, mean, -jnp.inf))
    attackers = lax.cond(
      (state.wait == 0) & (jnp.sum(present) > 2) & (low < high),
      lambda: _attackers(
        (mean - low) / (high - low), present, brought['key'], num_references
      ),
      lambda: jnp.zeros(num_clients, bool),
    )
    found, excluded = jnp.any(attackers), state.excluded | attackers

    verdict = average(gram, ~excluded[ids])
    verdict = of_population(verdict, ids, num_clients)
    update = geometry.mix(updates, verdict.weights)
    aggregate = _wide(lax.stop_gradient(update))
    turned = jax.tree.map(jnp.subtract, aggregate, state.aggregate)
    # There is no difference in the first round.
    slot = jnp.where(now > 1, now % window, window)

    def store(ring, row):
      return ring.at[slot].set(row, mode='drop')

    kept = jnp.where(rejected, num_clients, ids)  # beyond the last: not stored
    after = FLDetectorState(
      previous=jax.tree.map(
        lambda p, x: p.at[kept].set(x, mode='drop'), state.previous, rows
      ),
      last_round=state.last_round.at[kept].set(now, mode='drop'),
      model=model,
      aggregate=aggregate,
      models=jax.tree.map(store, state.models, moved),
      aggregates=jax.tree.map(store, state.aggregates, turned),
      scores=jnp.where(found, jnp.inf, scores),
      excluded=excluded,
      count=now,
      wait=jnp.where(found, start, jnp.maximum(state.wait - 1, 0)),
    )
    lost = jnp.all(jnp.isnan(verdict.weights))
    state = jax.tree.map(lambda a, s: jnp.where(lost, s, a), after, state)
    suspicion = jnp.where(count > 0, mean, jnp.inf)
    verdict = verdict._replace(scores=suspicion[ids])
    return update, state, verdict.info(gram)

  return Aggregator(init, ExplainedUpdate(explain))


def _wide(tree: PyTree) -> PyTree:
  """Returns a tree in float32 or wider."""
  return jax.tree.map(lambda x: x.astype(sums.wide(x.dtype)), tree)


def _expected_change(
  state: FLDetectorState, moved: Update, now: jax.Array, since: jax.Array
) -> tuple[Updates, jax.Array]:
  r"""Returns the expected changes of updates, :math:`H (w_t - w_s)`.

  With the pairs of differences :math:`s_j, y_j` as rows of S and Y, in the
  order of the rounds, the compact form of the L-BFGS matrix (Byrd et al. 1994)
  is

  .. math:: H = \sigma I - [\sigma S^T, Y^T] \begin{bmatrix} \sigma S S^T & L \\
      L^T & -D \end{bmatrix}^{-1} \begin{bmatrix} \sigma S \\ Y \end{bmatrix}

  where L is the part of :math:`S Y^T` below the diagonal D, and :math:`\sigma =
  s_N^T y_N / s_N^T s_N`. H stays the same if a pair is scaled: here, all
  :math:`s_j` have length 1, and :math:`\sigma = 1` until the end.

  Args:
    state: the state after the last round.
    moved: the model's difference to the last round.
    now: `[]`, t, this round.
    since: `[n]`, s, the rounds of the clients' last updates.

  Returns:
    Stacked changes, leaves `[n, ...]`; and False if there is no such matrix,
    because the model did not move or a pair is orthogonal.
  """
  # Rows: S, the model's last step, Y. The products of all of them in one pass.
  history = jax.tree.map(
    lambda s, v, y: jnp.concatenate([s, v[None], y]),
    state.models,
    moved,
    state.aggregates,
  )
  products = geometry.total_squares(jax.tree.map(sums.products, history))
  window = len(state.scores)
  rounds = now - window + jnp.arange(window)  # of the pairs, oldest first
  places = rounds % window
  order = jnp.concatenate([places, jnp.array([window]), window + 1 + places])
  products = products[order][:, order]
  s, y = slice(window), slice(window + 1, None)
  # w_t - w_s is the sum of the steps after round s: `[n, N + 1]` of S and v.
  steps = jnp.append(rounds > since[:, None], jnp.ones((len(since), 1)), axis=1)
  along = sums.dot(products[:, : window + 1], steps.T)  # `[2 N + 1, n]`

  sizes, bends = jnp.sqrt(jnp.diagonal(products)[s]), products[s, y]
  fine = jnp.all((sizes > 0) & (jnp.diagonal(bends) != 0))
  sizes = jnp.where(fine, sizes, 1)
  sigma = jnp.where(fine, bends[-1, -1], 1) / sizes[-1] ** 2
  by_s, by_y = 1 / sizes, 1 / (sizes * sigma)
  crossed = by_s[:, None] * bends * by_y
  lower = jnp.tril(crossed, -1)
  matrix = jnp.block(
    [
      [by_s[:, None] * products[s, s] * by_s, lower],
      [lower.T, -jnp.diag(jnp.diagonal(crossed))],
    ]
  )
  sides = jnp.concatenate([by_s[:, None] * along[s], by_y[:, None] * along[y]])
  solved = jnp.linalg.solve(jnp.where(fine, matrix, jnp.eye(2 * window)), sides)
  of_s = steps[:, :window] - (by_s[:, None] * solved[:window]).T
  of_y = -(by_y[:, None] * solved[window:]).T
  weights = sigma * jnp.concatenate([of_s, steps[:, window:], of_y], axis=1)
  # In the order of the rings again.
  weights = weights[:, jnp.argsort(order)]
  return geometry.mix(history, weights), fine


def _attackers(
  scores: jax.Array, present: jax.Array, key: jax.Array, num_references: int
) -> jax.Array:
  """Returns the cluster of large scores, if the gap statistic finds two.

  Args:
    scores: `[C]`, in [0, 1].
    present: `[C]` mask of the clients with a score, three or more.
    key: PRNG key.
    num_references: number of draws of uniform numbers.

  Returns:
    `[C]` mask of the cluster; nobody if there is one cluster only.
  """
  one, two, upper = two_means(scores, present)
  drawn = jax.random.uniform(key, (num_references, len(scores)))
  ones, twos, _ = jax.vmap(lambda x: two_means(x, present))(drawn)
  first = jnp.log(jnp.mean(ones)) - jnp.log(one)
  second = jnp.log(jnp.mean(twos)) - jnp.log(two)
  error = jnp.sqrt(1 + 1 / num_references) * jnp.std(jnp.log(twos))
  return upper & (first < second - error)


def two_means(
  x: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Splits numbers into the two clusters of the least sum of squares.

  Of sorted numbers, every prefix and the rest are compared, so that the split
  is the best one.

  Args:
    x: `[m]`.
    present: `[m]` mask of the numbers that count.

  Returns:
    The sums of squared distances to the mean, of one cluster and of both, and
    the mask of the numbers in the upper cluster. With fewer than two numbers
    there is no split: the sum is +inf.
  """
  order = jnp.argsort(jnp.where(present, x, jnp.inf))
  inside = jnp.arange(len(x)) < jnp.sum(present)
  values = jnp.where(inside, x[order], 0)

  def add(carry, item):  # Welford's sums, which do not cancel
    number, mean, squares = carry
    value, counts = item
    number += counts
    gap = value - mean
    mean += counts * gap / jnp.maximum(number, 1)
    squares += counts * gap * (value - mean)
    return (number, mean, squares), squares

  zero = jnp.zeros((), values.dtype)
  items = values, inside.astype(values.dtype)
  _, below = lax.scan(add, (zero, zero, zero), items)
  _, above = lax.scan(add, (zero, zero, zero), items, reverse=True)
  if len(x) == 1:
    return below[-1], jnp.array(jnp.inf), jnp.zeros(1, bool)
  both = jnp.where(inside[1:], below[:-1] + above[1:], jnp.inf)
  last = jnp.argmin(both)  # the place of the largest number below
  return below[-1], both[last], present & (x > values[last])
