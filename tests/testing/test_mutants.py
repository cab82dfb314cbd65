"""Rules with a planted fault, which `lca.testing.check_rule` has to find.

Each mutant is a rule that looks right on ordinary updates. The table says which
property finds its fault.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lca import testing

# Sound rules, of which the mutants are made --------------------------------


def on_rows(function):
  """Makes a rule of trees from one of float32 rows `[n, d]`."""

  def rule(updates, **hyper):
    leaves, structure = jax.tree.flatten(updates)
    rows = [jnp.asarray(x, jnp.float32).reshape(len(x), -1) for x in leaves]
    out = function(jnp.concatenate(rows, axis=1), **hyper)
    ends = np.cumsum([x.shape[1] for x in rows])[:-1]
    parts = [
      part.reshape(x.shape[1:]).astype(x.dtype)
      for part, x in zip(jnp.split(out, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)

  rule.__name__ = function.__name__
  return rule


def on_rows_with_f(function):
  def rule(updates, *, f):
    return on_rows(lambda rows: function(rows, f=f))(updates)

  rule.__name__ = function.__name__
  return rule


def usable(rows):
  with_norm = jnp.sum(rows**2, axis=1) < 1e30
  return with_norm & jnp.all(jnp.isfinite(rows), axis=1)


def squared_distances(rows):
  good = usable(rows)
  safe = jnp.where(good[:, None], rows, 0)
  squares = jnp.sum((safe[:, None] - safe) ** 2, axis=2)
  both = good[:, None] & good & ~np.eye(len(rows), dtype=bool)
  return jnp.where(both, squares, jnp.inf)


def krum_scores(rows, neighbours):
  nearest = jnp.sort(squared_distances(rows), axis=1)[:, :neighbours]
  return jnp.sum(nearest, axis=1)


def check_krum(rows, f):
  if f < 0 or len(rows) <= 2 * f + 2:
    raise ValueError(f'krum needs n > 2f + 2, got n={len(rows)}, f={f}')


def check_trimmed(rows, f):
  if f < 0 or len(rows) <= 2 * f:
    raise ValueError(f'n > 2f, got n={len(rows)}, f={f}')


def krum(rows, f):
  check_krum(rows, f)
  scores = krum_scores(rows, len(rows) - f - 2)
  return rows[jnp.argmin(scores)]


def median(rows):
  return jnp.median(jnp.where(jnp.isnan(rows), jnp.inf, rows), axis=0)


def mean(rows):
  return jnp.mean(rows, axis=0)


def trimmed_mean(rows, f):
  check_trimmed(rows, f)
  return jnp.mean(jnp.sort(rows, axis=0)[f : len(rows) - f], axis=0)


SOUND = {
  krum: 'full',
  median: 'hull',
  trimmed_mean: 'hull',
  mean: 'none',
}


# The mutants ---------------------------------------------------------------


def krum_of_the_farthest(rows, f):
  check_krum(rows, f)
  return rows[jnp.argmax(krum_scores(rows, len(rows) - f - 2))]


def krum_of_unchecked_n(rows, f):
  return rows[jnp.argmin(krum_scores(rows, max(1, len(rows) - f - 2)))]


def krum_mixed_without_a_mask(rows, f):
  check_krum(rows, f)
  scores = krum_scores(rows, len(rows) - f - 2)
  return jax.nn.one_hot(jnp.argmin(scores), len(rows)) @ rows  # 0 * nan


def krum_with_nan_distances(rows, f):
  check_krum(rows, f)
  squares = jnp.sum((rows[:, None] - rows) ** 2, axis=2)
  nearest = jnp.sort(squares, axis=1)[:, 1 : len(rows) - f - 1]
  return rows[jnp.argmin(jnp.sum(nearest, axis=1))]  # argmin takes NaN


def krum_of_inner_products(rows, f):
  check_krum(rows, f)
  squares = jnp.sum(rows**2, axis=1)
  far = squares[:, None] + squares - 2 * rows @ rows.T  # cancels
  far = jnp.where(usable(rows) & usable(rows)[:, None], far, jnp.inf)
  far = jnp.where(np.eye(len(rows), dtype=bool), jnp.inf, far)
  nearest = jnp.sort(far, axis=1)[:, : len(rows) - f - 2]
  return rows[jnp.argmin(jnp.sum(nearest, axis=1))]


def multi_krum_that_adds(rows, f):
  check_krum(rows, f)
  scores = krum_scores(rows, len(rows) - f - 2)
  chosen = jnp.argsort(scores)[:3]
  return jnp.sum(rows[chosen], axis=0) / 2


def neighbours_of_low_index(rows, f):
  check_trimmed(rows, f)
  return median(
    jnp.cumsum(rows, axis=0) / jnp.arange(1, len(rows) + 1)[:, None]
  )


def median_at_three_quarters(rows):
  ordered = jnp.sort(jnp.where(jnp.isnan(rows), jnp.inf, rows), axis=0)
  return ordered[(3 * len(rows)) // 4]


def median_of_numpy(rows):
  return jnp.asarray(np.median(np.asarray(rows), axis=0))


def median_by_branches(rows):
  if jnp.max(jnp.abs(rows)) > 1e6:
    return jnp.zeros(rows.shape[1])
  return median(rows)


def trimmed_mean_by_subtraction(rows, f):
  check_trimmed(rows, f)
  ordered = jnp.sort(rows, axis=0)
  n = len(rows)
  total = jnp.sum(rows, axis=0)
  total -= jnp.sum(ordered[:f], axis=0) + jnp.sum(ordered[n - f :], axis=0)
  return total / (n - 2 * f)


def trimmed_mean_of_one_less(rows, f):
  check_trimmed(rows, f)
  less = max(f - 1, 0)
  return jnp.mean(jnp.sort(rows, axis=0)[less : len(rows) - less], axis=0)


def trimmed_mean_by_size(rows, f):
  check_trimmed(rows, f)
  order = jnp.argsort(jnp.abs(rows), axis=0)[: len(rows) - f]
  return jnp.mean(jnp.take_along_axis(rows, order, axis=0), axis=0)


def mean_over_one_less(rows):
  return jnp.sum(rows, axis=0) / (len(rows) - 1)


def mean_in_float16(rows):
  return jnp.mean(rows.astype(jnp.float16), axis=0).astype(jnp.float32)


def mean_of_unit_rows(rows):
  lengths = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
  return jnp.mean(rows / lengths, axis=0) * jnp.median(lengths)


def mean_without_a_derivative(rows):
  return jax.lax.stop_gradient(mean(rows))


@jax.custom_vjp
def mean_with_a_wrong_derivative(rows):
  return mean(rows)


mean_with_a_wrong_derivative.defvjp(
  lambda rows: (mean(rows), rows), lambda rows, _: (-rows,)
)


def mean_of_the_numbers(rows, f):
  """It drops rows that are not finite, and trims only if there are none."""
  check_trimmed(rows, f)
  good = jnp.all(jnp.isfinite(rows), axis=1)
  kept = jnp.sum(jnp.where(good[:, None], rows, 0), axis=0) / jnp.sum(good)
  return jnp.where(jnp.all(good), trimmed_mean(rows, f), kept)


def mean_of_equal_lengths(rows):
  lengths = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
  return jnp.mean(rows * (jnp.min(lengths) / lengths), axis=0)


def mean_with_noise(rows):
  return mean(rows) + np.random.default_rng().normal(size=rows.shape[1])


_last = []


def mean_with_hidden_momentum(rows):
  _last.append(float(len(_last)))
  return mean(rows) * (1 + len(_last))


def first_plus_differences(rows):
  return rows[0] + jnp.median(rows[1:] - rows[0], axis=0) / 2


def mean_in_its_place(updates):
  for leaf in jax.tree.leaves(updates):
    if isinstance(leaf, np.ndarray):
      leaf[1:] += leaf[:1]
  return jax.tree.map(lambda x: jnp.mean(x, axis=0).astype(x.dtype), updates)


def mean_of_wide_dtype(updates):
  return jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32), 0), updates)


def mean_of_flat_arrays(updates):
  return jax.tree.map(lambda x: jnp.mean(x.reshape(len(x), -1), 0), updates)


# The property that finds each fault, and the promise under which it is asked.
MUTANTS = {
  krum_of_the_farthest: ('bounded', 'full'),
  krum_of_unchecked_n: ('limits', 'full'),
  krum_mixed_without_a_mask: ('bounded', 'full'),
  krum_with_nan_distances: ('bounded', 'full'),
  krum_of_inner_products: ('shifted', 'full'),
  multi_krum_that_adds: ('identical', 'full'),
  neighbours_of_low_index: ('permutation', 'none'),
  median_at_three_quarters: ('hull', 'hull'),
  median_of_numpy: ('jit', 'none'),
  median_by_branches: ('jit', 'none'),
  trimmed_mean_by_subtraction: ('hull', 'hull'),
  trimmed_mean_of_one_less: ('hull', 'hull'),
  trimmed_mean_by_size: ('shifted', 'finite'),
  mean_over_one_less: ('identical', 'none'),
  mean_in_float16: ('scaled', 'none'),
  mean_of_unit_rows: ('identical', 'none'),
  mean_without_a_derivative: ('gradient', 'none'),
  mean_with_a_wrong_derivative: ('gradient', 'none'),
  mean_of_the_numbers: ('hull', 'hull'),
  mean_of_equal_lengths: ('finite_rows', 'none'),
  mean_with_noise: ('pure', 'none'),
  mean_with_hidden_momentum: ('pure', 'none'),
  first_plus_differences: ('permutation', 'none'),
}
ON_TREES = {
  mean_in_its_place: ('pure', 'none'),
  mean_of_wide_dtype: ('structure', 'none'),
  mean_of_flat_arrays: ('structure', 'none'),
}


def as_rule(function):
  if function in ON_TREES:
    return function
  takes_f = 'f' in inspect.signature(function).parameters
  return (on_rows_with_f if takes_f else on_rows)(function)


def check(function, promise):
  takes_f = 'f' in inspect.signature(function).parameters
  f = 2 if promise != 'none' or takes_f else 0
  if function in (median, median_at_three_quarters):
    f = 4
  return testing.check_rule(
    as_rule(function), f=f, promise=promise, on_failure='return'
  )


@pytest.mark.parametrize('function', SOUND, ids=lambda x: x.__name__)
def test_a_sound_rule_passes(function):
  report = check(function, SOUND[function])
  assert not report.failures, str(report)


@pytest.mark.parametrize(
  'function', [*MUTANTS, *ON_TREES], ids=lambda x: x.__name__
)
def test_a_fault_is_found_and_shown(function):
  name, promise = (MUTANTS | ON_TREES)[function]
  report = check(function, promise)
  failed = {each.name: each for each in report.failures}
  assert name in failed, f'found {[*failed]}'
  # The code of each counterexample fails in the same way.
  for each in report.failures:
    with np.errstate(all='ignore'), pytest.raises(Exception) as error:
      exec(each.code, {'rule': as_rule(function)})
    if function not in (mean_with_noise, mean_with_hidden_momentum):
      assert str(error.value).splitlines()[0] in each.message
