"""Tests of a sweep's index: the folder of names that TensorBoard reads."""

from configs import digits
from lca.experiment import index


def test_runs_are_linked_by_name(tmp_path):
  runs = {'no attack/krum/0': digits.get_config('krum').lock()}
  place = index.record(runs, tmp_path)['no attack/krum/0']
  place.mkdir()
  (place / 'events.x').touch()
  link = tmp_path / 'tensorboard' / 'no attack' / 'krum' / '0'
  assert link.is_symlink() and not link.readlink().is_absolute()
  assert (link / 'events.x').exists()
  # The same name stands for another run once its config has changed.
  place.rename(tmp_path / 'old')
  changed = digits.get_config('krum').unlock()
  changed.num_rounds = 3
  other = index.record({'no attack/krum/0': changed.lock()}, tmp_path)
  assert link.resolve() == other['no attack/krum/0'].resolve() != place


def test_a_name_within_another_name_goes_without_a_link(tmp_path):
  config = digits.get_config('krum').lock()
  places = index.record({'a/0': config, 'a/0/0': config}, tmp_path)
  assert {*places} == {'a/0', 'a/0/0'}


def test_a_name_that_leads_elsewhere_replaces_nothing(tmp_path):
  workdir, mine = tmp_path / 'sweep', tmp_path / 'mine.txt'
  workdir.mkdir()
  mine.write_text('mine')
  (workdir / 'tensorboard').mkdir()
  (workdir / 'tensorboard' / 'notes').write_text('mine')
  config = digits.get_config('krum').lock()
  index.record({'../../mine.txt': config, 'notes': config}, workdir)
  assert mine.read_text() == 'mine'
  assert (workdir / 'tensorboard' / 'notes').read_text() == 'mine'


def test_a_link_is_never_made_inside_a_run(tmp_path):
  config = digits.get_config('krum').lock()
  runs = {'a/0': config, 'a/0/0': config}
  index.record(runs, tmp_path)['a/0'].mkdir()
  place = index.record(runs, tmp_path)['a/0']
  assert not [*place.iterdir()]
