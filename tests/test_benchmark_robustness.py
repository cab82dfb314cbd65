"""The forms that `benchmarks.robustness` searches, and its tables."""

import json

import pytest

from benchmarks import robustness

pytestmark = pytest.mark.quick


def test_the_main_searches_come_first_and_none_comes_twice():
  names = [f'{data} | {form} | {f}' for data, form, f in robustness.searches()]
  assert len({*names}) == len(names)
  assert names[0] == 'updates | krum, plain | 2'
  count = len(robustness.FORMS) * len(robustness.DATA)
  assert {name[-1] for name in names[:count]} == {'2'}


def test_bounds_are_those_of_the_form():
  assert robustness.Form('median').bound(2) == 1.25
  assert robustness.Form('median', pre='nnm').bound(2) == 16 / 9 * 2.25
  assert robustness.Form('krum', 'layerwise').bound(5) is None  # n > 2f + 2
  assert robustness.Form('krum', 'cosine').bound(2) is None
  assert robustness.Form('krum', pre='clip_to_median_norm').bound(2) is None


def test_the_tables(tmp_path):
  values = {
    'updates | krum, plain | 2': {'value': 1.5, 'generations': 300},
    'any | krum, plain | 2': {'value': 1.75, 'generations': 40},
    'updates | mean, plain | 4': {'value': 1e9, 'generations': 300},
  }
  about = {'n': 11, 'parameters': 5, 'values': values}
  (tmp_path / 'robustness.json').write_text(json.dumps(about))
  robustness.write_tables(tmp_path)
  lines = (tmp_path / 'robustness.md').read_text().splitlines()
  assert '| krum, plain | 1.5 |  |  | 1.75* | 5.42 |' in lines
  assert '| mean, plain | inf |  |  |  | inf |' in lines
  assert (tmp_path / 'breakdown.png').exists()
