"""How far the runs of a sweep are, and how long the rest will take."""

import pytest
from run_files import finished

from lca.experiment import outlook


def test_the_state_of_a_run(tmp_path):
  def state(num_rounds=1):
    return str(outlook.state(tmp_path / 'run', num_rounds))

  assert state() == 'to do'
  finished(tmp_path / 'run')
  assert state() == 'finished'
  assert state(num_rounds=4) == 'begun (round 1 of 4)'
  for damaged in ('', '[]', '{}'):
    (tmp_path / 'run' / 'summary.json').write_text(damaged)
    assert state() == 'begun (round 1 of 1)'


def test_the_pace_is_the_mean_of_all_rounds(tmp_path):
  runs = [tmp_path / name for name in ('long', 'short', 'untimed')]
  for run, seconds in zip(runs, [[1, 2, 3], [10], []], strict=True):
    run.mkdir()
    rows = [
      f'{k},2026-01-01T00:00:00+00:00,{s}\n' for k, s in enumerate(seconds)
    ]
    if seconds:
      (run / 'times.csv').write_text(
        ''.join(['round,finished,seconds\n', *rows])
      )
  assert outlook.pace(runs) == (1 + 2 + 3 + 10) / 4
  assert outlook.pace(runs[2:]) is None
  for damaged in (
    'round,seconds\n1,many\n',
    'round\n1\n',
    'round,seconds\n1\n',
  ):
    (runs[0] / 'times.csv').write_text(damaged)
    with pytest.raises(
      ValueError, match=r'times\.csv is damaged .*: delete it'
    ):
      outlook.pace(runs)


def test_the_time_left_counts_missing_rounds():
  new, begun, done = (
    outlook.State(rounds, 20, True, ended)
    for rounds, ended in [(0, False), (15, False), (20, True)]
  )
  # 20 and 5 rounds of 40 seconds, two at a time.
  assert outlook.time_left([new, begun, done], 40.0, 2) == '8 min left'
  assert outlook.time_left([done], None, 2) == 'nothing left'
  no_summary = done._replace(finished=False)
  assert outlook.time_left([no_summary], 30.0, 1) == '30 s left'
  assert 'no times' in outlook.time_left([new], None, 2)


def test_a_measured_pace_replaces_that_of_earlier_runs():
  states = {name: outlook.State(0, 10, False, False) for name in 'abc'}
  states['d'] = outlook.State(10, 10, True, True)
  states['a'] = outlook.State(8, 10, True, False)
  tally = outlook.Tally(states, 1.0, jobs=1)
  assert tally.opening() == '1 of 4 runs are finished already; 22 s left'
  tally.finish('a', 6.0)  # 2 rounds of 3 seconds
  assert (tally.count(), tally.time_left()) == ('[2/4]', '60 s left')
  tally.failed['b'] = 'no memory'
  assert (tally.count(), tally.time_left()) == ('[3/4]', '30 s left')
  assert tally.closing().splitlines() == [
    '4 runs: 1 finished now, 1 finished before, 1 failed, 1 to do',
    '  b: no memory',
  ]
