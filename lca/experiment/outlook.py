"""Tells how far the runs of a sweep are, and how long the rest will take."""

import csv
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from lca.experiment.summary import is_finished, read_summary


class State(NamedTuple):
  """How far a run is.

  Attributes:
    rounds: rounds in its `metrics.csv`.
    num_rounds: rounds of the whole run.
    begun: True if the run has a directory.
    finished: True if the run is finished.
  """

  rounds: int
  num_rounds: int
  begun: bool
  finished: bool

  def __str__(self) -> str:
    """Returns words for a person."""
    if self.finished:
      return 'finished'
    if self.begun:
      return f'begun (round {self.rounds} of {self.num_rounds})'
    return 'to do'


def state(path: pathlib.Path, num_rounds: int) -> State:
  """Returns how far a run is, from the files in its directory.

  Args:
    path: directory of the run, which need not exist.
    num_rounds: rounds of the whole run.
  """
  metrics = path / 'metrics.csv'
  lines = metrics.read_text().splitlines() if metrics.exists() else []
  try:
    done = is_finished(path) and read_summary(path)['num_rounds'] >= num_rounds
  except (ValueError, KeyError):
    # The summary is damaged. The run will say so when it starts.
    done = False
  return State(
    rounds=max(0, len(lines) - 1),
    num_rounds=num_rounds,
    begun=(path / 'config.json').exists(),
    finished=done,
  )


def pace(runs: Iterable[pathlib.Path]) -> float | None:
  """Returns the mean seconds of a round, over all rounds of the given runs.

  Args:
    runs: directories of finished runs. Those without a `times.csv` are left
      out.

  Returns:
    The mean; None if no run has times.

  Raises:
    ValueError: a `times.csv` is damaged.
  """
  seconds = []
  for file in (run / 'times.csv' for run in runs):
    try:
      with open(file, newline='') as lines:
        seconds += [float(row['seconds']) for row in csv.DictReader(lines)]
    except FileNotFoundError:
      continue
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{file} is damaged ({error!r}): delete it; it holds times alone'
      ) from None
  return sum(seconds) / len(seconds) if seconds else None


def time_left(states: Iterable[State], seconds: float | None, jobs: int) -> str:
  """Returns words for the time that unfinished runs will take.

  Args:
    states: of the runs.
    seconds: that a round takes; None if this is unknown.
    jobs: number of runs at the same time.
  """
  # A run may have all of its rounds and lack its summary.
  left = [max(1, s.num_rounds - s.rounds) for s in states if not s.finished]
  if not left:
    return 'nothing left'
  if seconds is None:
    return 'no times of finished runs to estimate the time left from'
  return f'{span(sum(left) * seconds / min(jobs, len(left)))} left'


def span(seconds: float) -> str:
  """Returns a length of time in its nearest unit.

  Examples:
    >>> [span(x) for x in (21.3, 2460.0, 30_000.0)]
    ['21 s', '41 min', '8.3 h']
  """
  if seconds < 100:
    return f'{seconds:.0f} s'
  if seconds < 100 * 60:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


class Tally:
  """Counts the runs of a sweep as they end, and estimates the time left.

  Attributes:
    failed: the reasons of the runs that failed, by name.
    stopped: number of runs that were stopped after a round.

  Args:
    states: how far each run is when the sweep starts, by name.
    pace: seconds that a round took in earlier runs; None if this is unknown.
      The first run that finishes replaces it by a measurement that counts the
      start of a run, too.
    jobs: number of runs at the same time.
  """

  def __init__(
    self, states: Mapping[str, State], pace: float | None, jobs: int
  ):
    self.failed: dict[str, str] = {}
    self.stopped = 0
    self._states, self._pace, self._jobs = dict(states), pace, jobs
    self._before = sum(state.finished for state in states.values())
    self._finished, self._rounds, self._seconds = 0, 0, 0.0

  def finish(self, name: str, seconds: float) -> None:
    """Counts a run as finished.

    Args:
      name: of the run.
      seconds: that it took, with its start, for the rounds that were missing.
    """
    state = self._states[name]
    self._states[name] = state._replace(finished=True)
    self._finished += 1
    self._rounds += max(1, state.num_rounds - state.rounds)
    self._seconds += seconds
    self._pace = self._seconds / self._rounds

  def time_left(self) -> str:
    """Returns words for the time that the runs will take that did not end."""
    open_states = [s for n, s in self._states.items() if n not in self.failed]
    return time_left(open_states, self._pace, self._jobs)

  def opening(self) -> str:
    """Returns the line before the first run."""
    return (
      f'{self._before} of {len(self._states)} runs are finished already; '
      f'{self.time_left()}'
    )

  def count(self) -> str:
    """Returns how many runs have ended, and how many there are."""
    ended = self._before + self._finished + len(self.failed)
    return f'[{ended}/{len(self._states)}]'

  def closing(self) -> str:
    """Returns the lines after the last run: how many ended in which way."""
    ended = self._before + self._finished + len(self.failed) + self.stopped
    counts = {
      'finished before': self._before,
      'failed': len(self.failed),
      'stopped': self.stopped,
      'to do': len(self._states) - ended,
    }
    others = ''.join(f', {n} {end}' for end, n in counts.items() if n)
    total = f'{len(self._states)} runs: {self._finished} finished now{others}'
    reasons = [f'  {name}: {why}' for name, why in self.failed.items()]
    return '\n'.join([total, *reasons])


def lines(
  runs: Mapping[str, ConfigDict], places: Mapping[str, pathlib.Path], jobs: int
) -> list[str]:
  """Lists the runs of a sweep, and sums them up.

  Args:
    runs: configs by name, at least one.
    places: the directory of each run by name, see `index.places_of`.
    jobs: number of runs at the same time.

  Returns:
    A line for each name with the run's id and state, and a last line with the
    number of runs in each state and the time left. That time is of rounds only:
    `times.csv` does not say how long a run takes to start.

  Raises:
    ValueError: see `pace`.
  """
  states = {
    name: state(places[name], config.num_rounds)
    for name, config in runs.items()
  }
  width = max(len(str(each)) for each in states.values())
  listed = [
    f'{places[name].name}  {each!s:{width}}  {name}'
    for name, each in states.items()
  ]
  # Several names may share a directory, which is run once.
  of_runs = {places[name]: each for name, each in states.items()}
  finished = [place for place, each in of_runs.items() if each.finished]
  begun = sum(each.begun for each in of_runs.values()) - len(finished)
  todo = len(of_runs) - len(finished) - begun
  left = time_left(of_runs.values(), pace(finished), jobs)
  total = (
    f'{len(of_runs)} runs: {len(finished)} finished, {begun} begun, {todo} to '
    f'do; {left}'
  )
  return [*listed, total]
