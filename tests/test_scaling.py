"""`benchmarks.scaling`: exponents, resuming, and one small measured point."""

import json

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import Point

ENVIRONMENT = {'cpu': 'made up'}


def row_of(point, ms, error=None):
  """Returns a row as a point's process would print it."""
  fields = {name: getattr(point, name) for name in Point.__annotations__}
  if error:
    return fields | {'error': error}
  return fields | {'ms': ms, 'memory_bytes': 4 * point.d, 'compile_s': 1.0}


def results_in(folder, rows=()):
  results = scaling.Results(folder / 'scaling.json')
  results.check(ENVIRONMENT)
  for row in rows:
    results.add(row)
  return results


@pytest.mark.quick
@pytest.mark.parametrize('power', [0.0, 1.0, 2.0, -0.5])
def test_the_exponent_of_a_power(power):
  x = np.array([10, 30, 100, 1000])
  assert scaling.exponent(x, 7 * x**power) == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_that_of_least_squares():
  # By hand: in logarithms to base 10 the points are (0, 0), (1, 1), (2, 1).
  assert scaling.exponent([1, 10, 100], [1, 10, 10]) == pytest.approx(0.5)
  assert scaling.exponent([1, 10], [1, 10]) is None


def test_the_cells_of_the_tables(tmp_path):
  """Short times are left out of an exponent, and the range says so."""
  points = scaling.points('d', 'Krum')
  times = [1.9, 3, 30, 300]  # the first one is below the floor
  results = results_in(tmp_path, map(row_of, points, times))
  assert scaling.FLOOR == 2
  cell = scaling.cell(results, 'd', 'Krum', 'ms')
  assert cell == '1.00 (1.00), from 1,000,000'
  assert scaling.cell(results, 'd', 'Krum', 'memory_bytes') == '1.00'
  assert scaling.cell(results, 'd', 'Krum', 'compile_s') == '0.00'
  assert scaling.cell(results, 'n', 'Krum', 'ms') == ''
  assert '| Krum | n² d |  | 1.00 (1.00)' in scaling.tables(results)


def test_the_theory_of_a_sum_has_the_exponent_of_the_same_points(tmp_path):
  points = scaling.points('n', 'mean')
  rows = [row_of(p, 0.3 * p.n) for p in points]
  results = results_in(tmp_path, rows)
  assert scaling.cell(results, 'n', 'mean', 'ms') == '1.00 (1.00)'
  # Between 10 and 1,000 n log n grows by 300, a power of 1.24.
  rows = [row_of(p, p.n) for p in scaling.points('n', 'median')]
  text = scaling.cell(results_in(tmp_path, rows), 'n', 'median', 'ms')
  assert text == '1.00 (1.24)'


@pytest.mark.quick
def test_a_rerun_measures_what_is_missing(tmp_path):
  points, asked = scaling.points('n', 'mean'), []

  def measured(point):
    if len(asked) == 2:
      raise KeyboardInterrupt
    asked.append(point)
    return row_of(point, ms=5.0, error='too long' * (point.n == 30))

  with pytest.raises(KeyboardInterrupt):
    scaling.measure_missing(results_in(tmp_path), points, measured)
  assert asked == points[:2]
  again, second = results_in(tmp_path), []
  scaling.measure_missing(
    again,
    points * 2,
    lambda point: second.append(point) or row_of(point, ms=5.0),
  )
  assert second == points[2:]
  assert again.rows == results_in(tmp_path).rows
  assert '- mean, n = 30, d = 1,000,000' in scaling.tables(again)


def test_another_environment_is_refused(tmp_path):
  results_in(tmp_path, [row_of(Point('mean'), 5.0)])
  with pytest.raises(ValueError, match='another environment'):
    scaling.Results(tmp_path / 'scaling.json').check({'cpu': 'another'})


def test_only_legato_has_a_window():
  assert not scaling.points('window', 'mean')
  assert len(scaling.points('window', 'LEGATO')) == 5


@pytest.mark.parametrize(('rule', 'held'), [('Krum', 1), ('LEGATO', 3)])
def test_a_small_point_is_measured_and_drawn(rule, held, tmp_path):
  point = Point(rule, n=5, d=200_000, layers=2, devices=2, window=3)
  row = scaling.measure(point, repeats=1, budget=5, limit=120)
  assert 'error' not in row
  assert row['ms'] > 0 and row['compile_s'] > 0 and row['runs'] == 1
  # Each device has half of the update and, for LEGATO, of a log of two, beside
  # temporaries of the size of an update or two.
  assert held <= row['memory_bytes'] / (4 * point.d / 2) < held + 3
  scaling.report(results_in(tmp_path, [row]), tmp_path)
  assert (tmp_path / 'scaling.png').stat().st_size > 10_000
  assert json.loads((tmp_path / 'scaling.json').read_text())['rows'] == [row]


def test_a_failed_process_is_a_row_with_an_error():
  point = Point('no rule')
  row = scaling.measure(point, repeats=1, budget=1, limit=120)
  assert (row['rule'], row['n']) == ('no rule', 10)
  assert "KeyError: 'no rule'" in row['error']
  slow = scaling.measure(Point('mean'), repeats=1, budget=1, limit=0.01)
  assert slow['error'] == 'did not end within 0.01 s'
