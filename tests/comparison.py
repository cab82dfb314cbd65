"""Compares the result of a rule with that of its oracle."""

import jax
import numpy as np
import oracles

STAGES = {
  'bulyan': oracles.bulyan,
  'bulyan_trimmed': oracles.bulyan_trimmed,
}


# Tolerances relative to the entries that are summed. The default is 2e-6, for
# float32 sums of n products and norms of rounded squares; some need more.
TOLERANCE = {
  # Weiszfeld's iteration stops when the weights change by less than 1e-6. They
  # may then be a hundred times that far from their limit.
  'geometric_median': 1e-4,
  # The top eigenvector has an error of eps over the gap between the two largest
  # eigenvalues, which is a few percent of them; a dozen steps add their errors.
  # For larger errors see `rounding_tolerance`.
  'caf': 1e-4,
}
# A distance computed from inner products has an error of sqrt(eps) times the
# norm. This limits the accuracy of a geometric median near a client's row.
NEAR_A_ROW = 5e-3


def check(case, tree, out, info, **extra):
  """Checks that `out` and `info` agree with the oracle up to rounding."""
  arrays = [array for _, array in oracles.leaves(tree)]
  outs = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
  extra = extra or case.extra(tree)
  brought = {k: [a for _, a in oracles.leaves(v)] for k, v in extra.items()}
  for layer, positions in enumerate(oracles.groups(tree, case.by)):
    layer_info = {
      k: np.asarray(v) if case.by == 'model' else np.asarray(v)[layer]
      for k, v in info.items()
    }
    layer_arrays = [arrays[p] for p in positions]
    layer_extra = {
      k: np.concatenate([leaves[p].ravel().astype(float) for p in positions])
      for k, leaves in brought.items()
    }
    layer_outs = [outs[p] for p in positions]
    check_scope(case, layer_arrays, layer_outs, layer_info, layer_extra)


def check_scope(case, arrays, outs, info, extra):
  """Does the same as `check` for one group of leaves.

  `extra` holds what the rule was given beside the updates, one row each.
  """
  rows = oracles.rows_of(arrays)
  hyper = case.hyper(len(rows))
  if case.name == 'lasa':
    expected = oracles.lasa(arrays, **hyper)
    close(case, outs, expected, np.where(np.isfinite(rows), rows, 0))
  elif case.name in oracles.COLUMNS:
    expected = oracles.COLUMNS[case.name](rows, **hyper)
    check_columns(case, rows, outs, expected, info)
  elif case.name in STAGES:
    check_stages(case, rows, outs, info)
  else:
    weights = expected_weights(case, rows, outs, info, extra)
    clip = {'clip': 'median'} if case.kind == 'cosine' else {}
    expected = oracles.combine(arrays, weights, **clip)
    if case.exact:
      for out, want in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(out, want.astype(np.float32))
    else:
      used = weights > 0
      tolerance = None
      if case.name == 'geometric_median' and np.any(used):
        tolerance = check_geometric_median(rows, outs, weights)
      near_a_row = tolerance is not None  # there the update may be zero
      if case.name in ('caf', 'foolsgold'):
        tolerance = rounding_tolerance(case.name, rows, hyper)
      scale = weights[used] @ np.abs(rows[used])
      if near_a_row:
        scale = np.median(np.abs(rows[used]), axis=0)
      close(case, outs, expected, scale, tolerance)


def close(case, outs, expected, used, tolerance=None):
  """Compares with a tolerance relative to the entries that are summed."""
  scale = np.max(np.abs(used), initial=0)
  tolerance = TOLERANCE.get(case.name, 2e-6) if tolerance is None else tolerance
  for out, want in zip(outs, expected, strict=True):
    np.testing.assert_allclose(
      out, want, rtol=max(1e-5, tolerance), atol=tolerance * scale
    )


def expected_weights(case, rows, outs, info, extra):
  """Returns the oracle's weights, or the rule's if they are equally good."""
  n = len(rows)
  hyper = case.hyper(n)
  if 'server_update' in extra:
    hyper = hyper | {'server': extra['server_update']}
  if case.name == 'flame':
    return check_flame(rows, info, extra['params'])
  if case.name == 'mean':
    return oracles.weights_of('mean', rows, hyper)
  np.testing.assert_array_equal(info['rejected'], oracles.rejected(rows))
  if case.name == 'sign_guard':
    return check_sign_guard(rows, info, hyper)
  if case.name == 'rflbat':
    return check_members(case, rows, info)
  if case.name == 'align_ins':
    return check_align_ins(rows, info, extra['params'])
  weights = oracles.weights_of(case.name, rows, hyper, case.kind)
  if case.name in oracles.SCORES:
    return check_selection(case, rows, info, weights)
  if case.name in oracles.OBJECTIVES:
    return check_subset(case, rows, info, weights)
  if case.name == 'caf':
    return check_caf(rows, info, hyper, weights)
  if case.name == 'foolsgold':
    return check_foolsgold(rows, info, weights)
  return weights


def check_selection(case, rows, info, weights):
  """Checks which clients are selected; returns their weights without the clip.

  Clients whose scores differ by less than float32's error may be exchanged. So
  the scores of the selected clients are compared, not their indices.
  """
  n = len(rows)
  bad = oracles.rejected(rows)
  if case.name == 'monna' and bad[0]:  # the pivot
    assert not np.any(info['selected'])
    return np.zeros(n)
  scores, _ = oracles.scores_of(case.name, rows, case.hyper(n), case.kind)
  selected = info['selected']
  assert not np.any(selected & bad)
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    finite = scores[np.isfinite(scores)]
    # Sums of 1e5 products in float32 have a relative error near 1e-6, and a
    # distance loses a digit to the cancellation of squared norms.
    slack = 1e-5 * (np.median(finite) if len(finite) else 0)
    slack += 1e-6 * n if case.kind == 'cosine' else 0
    if case.name == 'dnc':  # the direction is known to 1e-5
      slack += 1e-4 * np.max(finite)
    worst = np.max(scores[weights > 0])
    if case.name == 'multi_metrics':  # the covariance may be nearly singular
      near = scores <= 2 * worst
      moved = moved_scores(case, rows)[:, near]
      slack += 3 * np.max(np.abs(moved - scores[near]))
    assert np.all(scores[selected] <= worst + slack)
    assert np.all(scores[~selected & ~bad] >= worst - slack)
    assert not np.any(np.isfinite(info['scores'][bad]))
  return selected / max(1, np.sum(selected))


def moved_scores(case, rows, draws=4):
  """Returns `[draws, n]` scores of rows that rounding has moved at random."""
  rng = np.random.default_rng(0)
  moved = [
    rows * (1 + 1e-6 * rng.standard_normal(rows.shape)) for _ in range(draws)
  ]
  hyper = case.hyper(len(rows))
  return np.array(
    [oracles.scores_of(case.name, x, hyper, case.kind)[0] for x in moved]
  )


def check_subset(case, rows, info, weights):
  """Does the same as `check_selection`, with the objective of the subset."""
  selected = info['selected']
  assert not np.any(selected & oracles.rejected(rows))
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    objective = oracles.OBJECTIVES[case.name](rows, case.kind)
    best = objective(np.flatnonzero(weights))
    got = objective(np.flatnonzero(selected))
    # The error of squared norms, or of cosines, in float32.
    size = np.max(np.sum(rows[selected] ** 2, axis=1))
    slack = 1e-6 * (len(rows) if case.kind == 'cosine' else size)
    assert got <= best * (1 + 1e-5) + slack
  return selected / max(1, np.sum(selected))


def check_sign_guard(rows, info, hyper):
  """Accepts the clusters of any way to break the ties of average linkage."""
  hyper = {k: v for k, v in hyper.items() if k != 'fraction'}
  passed, clusters = oracles.sign_guard_choices(rows, slack=1e-6, **hyper)
  selected = info['selected']
  if clusters is None:  # there are too many ways to follow
    assert not np.any(selected & ~passed)
  else:
    assert any(np.array_equal(selected, passed & c) for c in clusters)
  share = selected / max(1, np.sum(selected))
  return share * oracles.clip_factors(rows)


def check_flame(rows, info, params):
  """Accepts any cluster that joins at the oracle's threshold up to rounding."""
  np.testing.assert_array_equal(info['rejected'], oracles.rejected(rows))
  members, threshold = oracles.flame_cluster(rows, params=params)
  selected = np.flatnonzero(info['selected']).tolist()
  if selected != members:
    matrix = oracles.model_distances(rows, params=params)
    good = np.flatnonzero(~oracles.rejected(rows)).tolist()
    slack = 1e-4 * threshold  # cosines' errors: see `lca.distances`
    assert len(selected) >= min(len(rows) // 2 + 1, len(good))
    above = oracles.connected(matrix, selected, threshold + slack)
    assert above == [set(selected)]
    others = sorted({*good} - {*selected})
    gaps = matrix[np.ix_(selected, others)]
    assert np.min(gaps, initial=np.inf) >= threshold - slack
  share = oracles.equal_weights(len(rows), selected)
  return share * oracles.clip_factors(rows)


def check_members(case, rows, info, draws=40):
  """Accepts the members for rows that rounding has moved at random."""
  hyper, selected = case.hyper(len(rows)), np.asarray(info['selected'])
  rng = np.random.default_rng(0)
  weights = oracles.weights_of(case.name, rows, hyper)
  for _ in range(draws):
    if np.array_equal(selected, weights > 0):
      return weights
    moved = rows * (1 + 1e-6 * rng.standard_normal(rows.shape))
    weights = oracles.weights_of(case.name, moved, hyper)
  raise AssertionError(f'{selected} is no selection of the oracle')


def check_align_ins(rows, info, params):
  """Accepts any decision about clients at a bound up to rounding."""
  selected = np.asarray(info['selected'])
  sure, possible = (
    oracles.align_ins_kept(rows, params=params, slack=slack)
    for slack in (-2e-6, 2e-6)
  )
  assert np.all(sure <= selected) and np.all(selected <= possible)
  return oracles.align_ins_factors(rows, selected)


def check_geometric_median(rows, outs, weights):
  """Checks the objective; returns the tolerance of the point, or None."""
  point = oracles.weighted_sum(rows, weights)
  got = np.concatenate([out.ravel() for out in outs]).astype(float)
  best = oracles.sum_of_distances(rows, point)
  size = np.median(np.linalg.norm(rows[weights > 0], axis=1))
  away = np.min(np.linalg.norm(rows[weights > 0] - point, axis=1))
  near_a_row = away <= 0.1 * size
  slack = 1e-6 * best + (1e-3 * len(rows) * size if near_a_row else 0)
  assert oracles.sum_of_distances(rows, got) <= best + slack
  return NEAR_A_ROW if near_a_row else None


def check_caf(rows, info, hyper, weights):
  """Accepts any step whose largest variance is the least up to rounding."""
  steps = oracles.caf_steps(rows, **hyper)
  best = min(variance for variance, _ in steps)
  gaps = [
    (np.max(np.abs(other - info['weights'])), i)
    for i, (variance, other) in enumerate(steps)
    if variance <= best * (1 + 1e-4)
  ]
  return steps[min(gaps)[1]][1] if not np.any(np.isnan(weights)) else weights


def rounding_tolerance(name, rows, hyper):
  """Returns by how much the rule amplifies the rounding of float32's sums.

  The steps of CAF may amplify rounding a thousand times, as may the logarithms
  of FoolsGold for directions that nearly agree. This is a property of the rule.
  """
  weights = oracles.weights_of(name, rows, hyper)
  draws = np.random.default_rng(0).standard_normal((5, *rows.shape))
  moved = [
    np.sum(
      np.abs(oracles.weights_of(name, rows * (1 + 1e-6 * x), hyper) - weights)
    )
    for x in draws
  ]
  return max(TOLERANCE.get(name, 2e-6), *moved)


def check_foolsgold(rows, info, weights):
  """Accepts any weights if all updates have the same direction."""
  bad = oracles.rejected(rows)
  if np.max(oracles.foolsgold_dissimilarities(rows)) > 1e-5 or np.all(bad):
    return weights
  assert np.all(info['weights'] >= 0) and not np.any(info['weights'][bad])
  np.testing.assert_allclose(np.sum(info['weights']), 1, rtol=1e-6)
  return info['weights'].astype(float)


def check_columns(case, rows, outs, expected, info):
  """Compares the columns whose entries do not tie within rounding."""
  assert info == {}
  out = np.concatenate([leaf.ravel() for leaf in outs])
  finite = np.isfinite(expected)
  assert not np.any(np.isfinite(out[~finite]))
  sure = finite
  if case.name in ('meamed', 'phocas'):
    hyper = case.hyper(len(rows))
    count, middle = len(rows) - hyper['f'], None
    if case.name == 'phocas':
      middle = oracles.trimmed_mean(rows, **hyper)
    sure = finite & ~oracles.doubtful_columns(rows, count, middle)
  scale = np.max(np.abs(expected[sure]), initial=0)
  if case.name == 'sign_majority':
    scale = np.max(np.abs(rows[:, sure]), initial=0)
  np.testing.assert_allclose(
    out[sure], expected[sure], rtol=1e-5, atol=2e-6 * scale
  )


def check_stages(case, rows, outs, info):
  """Checks the selection, then the statistic of the selected rows."""
  n = len(rows)
  hyper = case.hyper(n)
  np.testing.assert_array_equal(info['rejected'], oracles.rejected(rows))
  selected = info['selected']
  if case.name == 'bulyan_trimmed':
    weights = oracles.weights_of(case.name, rows, hyper, case.kind)
    check_selection(case, rows, info, weights)
  else:
    matrix = oracles.distance_matrix(rows, case.kind)
    near = matrix[np.isfinite(matrix)]
    # The error of a sum of float32 distances, as in `check_selection`.
    slack = 1e-5 * n * (np.median(near) if len(near) else 0)
    slack += 1e-6 * n if case.kind == 'cosine' else 0
    members = oracles.bulyan_members(
      rows,
      kind=case.kind,
      prefer=np.flatnonzero(selected).tolist(),
      slack=slack,
      **hyper,
    )
    assert np.flatnonzero(selected).tolist() == sorted(members)
  members = np.flatnonzero(selected)
  if case.kind == 'cosine':
    with np.errstate(invalid='ignore'):  # rejected rows, which are unused
      rows = rows * oracles.clip_factors(rows)[:, None]
  expected = STAGES[case.name](rows, members, **hyper)
  sure = np.ones(len(expected), bool)
  if case.name == 'bulyan' and len(members) == n - 2 * hyper['f']:
    count = n - 4 * hyper['f']
    sure = ~oracles.doubtful_columns(rows[members], count)
  scale = np.max(np.abs(rows[members]), initial=0)
  out = np.concatenate([leaf.ravel() for leaf in outs])
  np.testing.assert_allclose(
    out[sure], expected[sure], rtol=1e-5, atol=2e-6 * scale
  )
