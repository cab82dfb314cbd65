"""A search for the rows that harm an aggregate most."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca import options
from lca.attacks.white_box import Peak, ascend
from lca.robustness.starts import (
  centre,
  flat,
  starts,
  two_points,
  unit_length,
)
from lca.stacked import geometry
from lca.typing import Update, Updates

Objective = Literal['deviation', 'inner_product'] | Callable[[Update], Any]
Method = Literal['start', 'gradient', 'evolution']

_LENGTHS = (-3.5, 0.5)  # decimal logarithms of the changes' lengths
_ROUNDING = 1e-6  # a smaller move, in units of the mean's norm, counts as none
_CLOSEST = 1e-3  # least spread of honest rows that move, in the same units


class Worst(NamedTuple):
  """The worst rows that a search has found.

  Attributes:
    updates: stacked pytree, leaves `[n, ...]`: all rows as the rule sees them.
    byzantine: `[n]` mask of the Byzantine rows.
    value: the objective at these rows.
    start: name of the start that led to them.
    method: the last part of the search that improved them: the start itself,
      the ascent along the gradient, or the evolution.
    tries: for each start the values at the start, after the ascent, and after
      the evolution (NaN where none was made).
  """

  updates: Updates
  byzantine: np.ndarray
  value: float
  start: str
  method: Method
  tries: Mapping[str, tuple[float, float, float]]


def worst_case(
  rule: Callable[[Updates], Update],
  honest: Updates,
  f: int,
  objective: Objective = 'deviation',
  *,
  key: jax.Array,
  place: Literal['first', 'last'] = 'last',
  move_honest: bool = False,
  num_steps: int = 20,
  step_size: float = 0.5,
  num_restarts: int = 8,
  num_generations: int = 40,
  population: int = 16,
  batch_size: int = 16,
) -> Worst:
  r"""Searches for the rows of f Byzantine clients that harm a rule most.

  The value that is found is a *lower* bound on the worst case: a longer or
  another search may find more. `lca.theory` has upper bounds.

  The search has three parts:

  1. *Starts*: what the known attacks of `lca.attacks` send, with several
     strengths and targets (ALIE, Fall of Empires, sign flips, Min-Max, Min-Sum,
     Fang's, Mimic of each honest row), shares of the honest mean, and rows far
     away or in random directions.
  2. *Gradient*: from each start, an ascent through the rule, as in
     `lca.attacks.white_box`.
  3. *Evolution*: rules that select rows are flat between the points where their
     selection changes. The best `num_restarts` results, and a mixture of all
     that takes each leaf from the one that does most harm there, therefore
     evolve: in each generation, `population` random changes are tried, and the
     best one is kept if it does no less harm. A change moves one attacker or
     several, alike or apart, in one leaf or in all, in a random direction or in
     one spanned by the honest rows, or lengthens them; its length is drawn from
     four decades. One of the changes takes each leaf from the one that did most
     harm there in the generation before, which is the best of all for layerwise
     rules.

  Args:
    rule: function from stacked updates `[n, ...]` to one update, with its
      options bound, such as `functools.partial(lca.krum, f=2)`. One compilation
      serves all calls with the same function, the same shapes and the same
      numbers of steps.
    honest: the honest rows, stacked pytree, leaves `[n - f, ...]`. The rule
      sees them in float32 or wider.
    f: number of Byzantine rows, at least 1.
    objective: `'deviation'` is :math:`\|F - \mu\|^2 / V`, the squared distance
      of the aggregate from the honest mean :math:`\mu`, in units of the honest
      rows' mean squared distance V from it. It is a lower bound on the rule's
      :math:`\kappa` (see `lca.theory`). `'inner_product'` is minus the inner
      product of the aggregate with :math:`\mu`, over :math:`\|\mu\|^2`: -1 is
      no harm, and above 0 the aggregate points away from the mean. A function
      maps the aggregate to the number that is to be large.
    key: PRNG key.
    place: place of the Byzantine rows among the n. Of rows with equal scores,
      rules take the first.
    move_honest: True searches over the honest rows, too, beginning at those
      given. The value then estimates the rule's :math:`\kappa` over all rows of
      these shapes. For `'deviation'` alone.
    num_steps: steps of each ascent, at least 0. A rule that is not
      differentiable needs 0.
    step_size: length of these steps, in units of :math:`\sqrt V`.
    num_restarts: number of results that evolve, at least 1.
    num_generations: generations of the evolution, at least 0.
    population: changes in a generation, at least 2.
    batch_size: number of aggregations at once; each needs a copy of the
      updates.

  Returns:
    The rows and the value. Infinity means that the aggregate was not finite, or
    that it moved while all honest rows were equal. Moves of less than 1e-6 of
    the mean's norm do not count, because of rounding, nor do honest rows that
    the search has moved to within 1e-3 of it.

  Examples:
    >>> import functools, jax, jax.numpy as jnp, lca
    >>> honest = jnp.array([0., 0., 0., 1., 1., 1.])
    >>> worst = lca.robustness.worst_case(
    ...   lca.median, honest, f=1, key=jax.random.key(0))
    >>> round(worst.value, 4), worst.byzantine.sum()
    (1.0, np.int64(1))

  Raises:
    ValueError: a number is out of its range, an option is unknown, the rows are
      not floats, or `move_honest` with another objective.
  """
  options.whole(1)('f', f)
  if not callable(objective):
    options.one_of('deviation', 'inner_product')('objective', objective)
  options.one_of('first', 'last')('place', place)
  if move_honest and objective != 'deviation':
    raise ValueError(
      f"move_honest needs objective='deviation', got objective={objective!r}"
    )
  step_size = options.positive('step_size', step_size)
  options.whole(0)('num_steps', num_steps)
  options.whole(1)('num_restarts', num_restarts)
  options.whole(0)('num_generations', num_generations)
  options.whole(2)('population', population)
  options.whole(1)('batch_size', batch_size)
  honest = jax.tree.map(jnp.asarray, honest)
  num_honest = geometry.num_clients(honest)
  problem = _Problem(
    rule=rule,
    num_honest=num_honest,
    objective=objective,
    shift=f if place == 'first' else 0,
    move_honest=move_honest,
  )
  # The attackers' own rows: what they would send if they were honest.
  own = np.arange(num_honest + f) % num_honest
  updates = jax.tree.map(lambda x: x[own], honest)
  found = starts(updates, num_honest, key, batch_size)
  if move_honest:
    found |= two_points(updates, num_honest, key, batch_size)
  peaks, first = _climb(
    problem, updates, list(found.values()), num_steps, step_size, batch_size
  )
  # Evolution. Its random changes are compiled apart from the rule, once for all
  # rules.
  restarts = min(num_restarts, len(found))
  values, ancestors = lax.top_k(peaks.value, restarts)
  rows = peaks.rows[ancestors]
  leaf_sizes = tuple(leaf[0].size for leaf in jax.tree.leaves(updates))
  mixture = _best_leaves(leaf_sizes, peaks.rows, peaks.more)
  children = jnp.broadcast_to(mixture, rows.shape)
  given = flat(updates)
  for generation in range(num_generations):
    candidates = _candidates(
      num_honest,
      move_honest,
      leaf_sizes,
      population,
      given,
      rows,
      children,
      jax.random.fold_in(key, generation),
    )
    parts = _values(problem, updates, candidates, batch_size)
    rows, values, children = _select(
      leaf_sizes, rows, values, candidates, parts
    )
  after = jnp.full_like(first, jnp.nan).at[ancestors].set(values)
  tries = np.stack(jax.device_get([first, peaks.value, after]), axis=1)
  tries = dict(zip(found, tries.tolist(), strict=True))
  start = max(tries, key=lambda name: np.nanmax(tries[name]))
  value = float(np.nanmax(tries[start]))
  return Worst(
    updates=jax.device_get(_seen(problem, updates, rows[jnp.argmax(values)])),
    byzantine=np.roll(np.arange(len(own)) >= num_honest, problem.shift),
    value=value,
    start=start,
    method=('start', 'gradient', 'evolution')[tries[start].index(value)],
    tries={name: tuple(values) for name, values in tries.items()},
  )


class _Problem(NamedTuple):
  """The problem that compiled programs depend on."""

  rule: Callable[[Updates], Update]
  num_honest: int
  objective: Objective
  shift: int  # by how many places the rows are moved before the rule sees them
  move_honest: bool


@functools.partial(jax.jit, static_argnums=(0, 3, 5))
def _climb(problem, updates, starts, num_steps, step_size, batch_size):
  """Returns the peaks of the ascents from all starts, and the starts' values.

  Args:
    problem: the rule and the objective.
    updates: rows in the form of the rule's, leaves `[n, ...]`.
    starts: list of s matrices of rows, `[n, d]`.
    num_steps: of each ascent.
    step_size: in units of the honest rows' spread.
    batch_size: number of ascents at once.
  """
  length = step_size * unit_length(flat(updates), problem.num_honest)

  def harm(rows):
    parts = _parts(problem, updates, rows)
    return jnp.sum(parts), parts

  def climb(rows):
    if not num_steps:
      value, parts = harm(rows)
      return Peak(rows, value, parts), value[None]
    parts = jax.eval_shape(harm, rows)[1]
    lowest = jnp.full((), -jnp.inf, parts.dtype)
    best = Peak(rows, lowest, jnp.zeros_like(parts))
    return ascend(harm, rows, best, num_steps=num_steps, length=length)

  peaks, values = lax.map(climb, jnp.stack(starts), batch_size=batch_size)
  return peaks, values[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _values(problem, updates, candidates, batch_size):
  """Returns the `[r, c, leaves]` parts of the objective of `[r, c, n, d]`."""
  restarts, population, *shape = candidates.shape
  parts = lax.map(
    functools.partial(_parts, problem, updates),
    candidates.reshape(-1, *shape),
    batch_size=batch_size,
  )
  return parts.reshape(restarts, population, -1)


def _parts(problem, updates, rows):
  """Returns the objective at these rows, as parts that sum to it.

  The parts are those of the leaves, or there is one if the objective is a
  function. Parts that are NaN are infinite.
  """
  h = problem.num_honest
  if not problem.move_honest:
    rows = jnp.concatenate([lax.stop_gradient(rows[:h]), rows[h:]])
  update = problem.rule(_seen(problem, updates, rows))
  if callable(problem.objective):
    parts = jnp.atleast_1d(jnp.asarray(problem.objective(update)))
  else:
    mean, spread = centre(rows, h)
    size = jnp.sum(mean**2)
    leaves = [x.reshape(-1) for x in jax.tree.leaves(update)]
    means = jnp.split(mean, np.cumsum([x.size for x in leaves])[:-1])
    pairs = zip(leaves, means, strict=True)
    if problem.objective == 'inner_product':
      scale = size
      parts = jnp.stack([-jnp.sum(x * m) for x, m in pairs])
    else:
      scale = spread**2
      parts = jnp.stack([jnp.sum((x - m) ** 2) for x, m in pairs])
      # Rounding moves the mean of equal rows, and decides between close ones.
      ignored = jnp.sum(parts) <= _ROUNDING**2 * size
      if problem.move_honest:
        ignored |= spread < _CLOSEST * jnp.sqrt(size)
      parts = jnp.where(ignored, 0, parts)
    parts = parts / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)
  return jnp.where(jnp.isnan(parts), jnp.inf, parts)


def _seen(problem, updates, rows):
  """Returns a matrix of rows in the form that the rule sees."""
  rows = jnp.roll(rows, problem.shift, axis=0)
  leaves, structure = jax.tree.flatten(updates)
  ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
  parts = jnp.split(rows, ends, axis=1)
  return jax.tree.unflatten(
    structure,
    [x.reshape(leaf.shape) for x, leaf in zip(parts, leaves, strict=True)],
  )


@functools.partial(jax.jit, static_argnums=0)
def _select(leaf_sizes, rows, values, candidates, parts):
  """Returns the best rows of a generation, and mixtures of the candidates.

  Args:
    leaf_sizes: numbers of coordinates of the leaves.
    rows: `[r, n, d]` best rows so far.
    values: `[r]`.
    candidates: `[r, c, n, d]`.
    parts: `[r, c, leaves]` parts of the candidates' values, or `[r, c, 1]`.
  """
  totals = jnp.sum(parts, axis=2)
  best, most = jnp.argmax(totals, axis=1), jnp.max(totals, axis=1)
  chosen = candidates[jnp.arange(len(rows)), best]
  rows = jnp.where((most >= values)[:, None, None], chosen, rows)
  mix = functools.partial(_best_leaves, leaf_sizes)
  return rows, jnp.maximum(values, most), jax.vmap(mix)(candidates, parts)


@functools.partial(jax.jit, static_argnums=0)
def _best_leaves(leaf_sizes, candidates, parts):
  """Returns rows with each leaf from the candidate that does most harm there.

  Args:
    leaf_sizes: numbers of coordinates of the leaves.
    candidates: `[c, n, d]` rows.
    parts: `[c, leaves]` parts of the objective, or `[c, 1]`.
  """
  best = jnp.broadcast_to(jnp.argmax(parts, axis=0), len(leaf_sizes))
  leaves = jnp.split(candidates, np.cumsum(leaf_sizes)[:-1], axis=2)
  chosen = [leaf[i] for leaf, i in zip(leaves, best, strict=True)]
  return jnp.concatenate(chosen, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _candidates(
  num_honest, move_honest, leaf_sizes, population, given, rows, children, key
):
  """Returns `[r, population, n, d]` rows: each child, and changes of the rows.

  Args:
    num_honest: number of honest rows.
    move_honest: True if they change, too.
    leaf_sizes: numbers of coordinates of the leaves.
    population: number of candidates for each of the r rows.
    given: `[n, d]` rows, whose honest ones span a part of the changes.
    rows: `[r, n, d]`.
    children: `[r, n, d]`.
    key: PRNG key.
  """
  first = 0 if move_honest else num_honest  # the rows before stay as they are
  mean, _ = centre(given, num_honest)
  unit = unit_length(given, num_honest)
  deviations = (given[:num_honest] - mean) / (jnp.sqrt(num_honest) * unit)
  leaf_of = np.repeat(np.arange(len(leaf_sizes)), leaf_sizes)
  shortest, longest = _LENGTHS

  def change(rows, key):
    moving = rows[first:]
    num, d = moving.shape
    # Few large draws compile faster than many small ones.
    keys = jax.random.split(key)
    normal = jax.random.normal(keys[0], (num, d + num_honest + 1), rows.dtype)
    uniform = jax.random.uniform(keys[1], (num + 7,), rows.dtype)
    choice = uniform[num:]
    # A step in a random direction, or in one that the honest rows span.
    noise, weights = normal[:, :d] / jnp.sqrt(d), normal[:, d:-1]
    step = jnp.where(choice[0] < 1 / 2, noise, weights @ deviations)
    step = jnp.where(choice[1] < 1 / 2, step, step[:1])  # alike for all rows
    length = unit * 10 ** (shortest + (longest - shortest) * choice[2])
    stretch = jnp.where(choice[3] < 1 / 3, jnp.exp(normal[0, -1]), 1)
    # The changes are in all rows or in some, in all leaves or in one.
    in_row = (choice[4] < 1 / 2) | (uniform[:num] < 1 / 2)
    one = jnp.floor(choice[5] * len(leaf_sizes))
    in_column = (choice[6] < 1 / 2) | (leaf_of == one)
    changed = mean + stretch * (moving - mean) + length * step
    changed = jnp.where(in_row[:, None] & in_column, changed, moving)
    return jnp.concatenate([rows[:first], changed])

  keys = jax.random.split(key, (len(rows), population - 1))
  changed = jax.vmap(jax.vmap(change, (None, 0)))(rows, keys)
  return jnp.concatenate([children[:, None], changed], axis=1)
