"""Min-Max and Min-Sum send the farthest rows that their bounds allow."""

import jax
import numpy as np
import pytest
from attack_cases import flat, mask, sent, stack


def directions(honest):
  """Returns the direction p of each name, from honest rows `[m, d]`."""
  mean = honest.mean(axis=0)
  return {'unit': -mean, 'std': -honest.std(axis=0), 'sign': -np.sign(mean)}


def max_excess(row, honest):
  """Returns the largest distance to honest rows over that between them."""
  between = np.linalg.norm(honest[:, None] - honest, axis=2)
  return np.max(np.linalg.norm(row - honest, axis=1)) / np.max(between)


def sum_excess(row, honest):
  """Returns the sum of squared distances over the largest honest sum."""
  between = np.sum((honest[:, None] - honest) ** 2, axis=(1, 2))
  return np.sum((row - honest) ** 2) / np.max(between)


@pytest.mark.parametrize('direction', ['unit', 'std', 'sign'])
@pytest.mark.parametrize(
  ('name', 'excess'), [('min_max', max_excess), ('min_sum', sum_excess)]
)
@pytest.mark.parametrize('seed', range(3))
def test_the_farthest_row_that_distances_allow(name, excess, direction, seed):
  tree, byzantine = stack(seed=seed), mask(11, 3, seed)
  honest = flat(tree)[~byzantine]
  rows = sent(name, tree, byzantine, direction=direction)
  assert np.all(rows == rows[0])
  mean = honest.mean(axis=0)
  step, p = rows[0] - mean, directions(honest)[direction]
  length = np.linalg.norm(step)
  cosine = step @ p / length / np.linalg.norm(p)
  assert cosine > 1 - 1e-6 and length > 0.1
  assert excess(rows[0], honest) < 1 + 1e-5
  assert excess(mean + 1.0001 * step, honest) > 1


def test_two_honest_clients():
  """Both honest rows are at distance 1 from their mean (1, 0)."""
  rows, byzantine = np.array([[0.0, 0], [9, 9], [2, 0]]), mask(3, 0)
  byzantine[1] = True
  # p is minus the deviation, (-1, 0). The row may be at distance 2 from the
  # farther honest row, (2, 0), so it is the other honest row.
  np.testing.assert_allclose(
    sent('min_max', rows, byzantine), [[0, 0]], atol=1e-6
  )
  # p = -sign(mean) is (-1, 0), too. The sum is 2 (1 + gamma^2) <= 4, so gamma
  # is 1.
  np.testing.assert_allclose(
    sent('min_sum', rows, byzantine, direction='sign'), [[0, 0]], atol=1e-6
  )


@pytest.mark.parametrize('name', ['min_max', 'min_sum'])
def test_distances_of_close_clients_far_from_zero(name):
  rng = np.random.default_rng(0)
  rows = (1000 + rng.normal(size=(11, 300))).astype(np.float32)
  byzantine = mask(11, 3)
  honest = rows[~byzantine].astype(np.float64)
  excess = max_excess if name == 'min_max' else sum_excess
  out = sent(name, rows, byzantine)[0]
  # Rounding moves a coordinate by up to 3e-5; its standard deviation is 1.
  assert abs(excess(out, honest) - 1) < 1e-4


@pytest.mark.parametrize('name', ['min_max', 'min_sum'])
@pytest.mark.parametrize('direction', ['unit', 'std', 'sign'])
def test_identical_clients_leave_no_room(name, direction):
  tree = jax.tree.map(lambda x: np.repeat(x[:1], 11, axis=0), stack())
  byzantine = mask(11, 3)
  np.testing.assert_allclose(
    sent(name, tree, byzantine, direction=direction),
    flat(tree)[byzantine],
    rtol=1e-5,
    atol=1e-5,
  )
