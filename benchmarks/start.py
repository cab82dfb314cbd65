"""Times how long commands take to start: compiled anew, and compiled before.

    python -m benchmarks.start --output=start.json

Each command runs in a process of its own, as a person starts it. `cold` begins
with an empty folder of compiled programs, `warm` with the programs that `cold`
has left, and `without` is `--no-compilation-cache`. The time of a first round
ends with the line that is printed after it. The sweep is a part of
`configs/attacks.py`: four attacks against four rules, one run at a time.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks import record

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls.', lower_bound=1)

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ONLY = '(alie|gaussian|sign_flip|label_flipping) x (krum|median|legato|fedavg)'


def timed(command: list[str], caches: str, until: str | None = None) -> float:
  """Runs a command, and returns the seconds until its end, or until a line.

  Args:
    command: of Python, without the interpreter.
    caches: the user's cache directory.
    until: the start of the line whose time counts; None counts the end.

  Raises:
    RuntimeError: the command failed.
  """
  start, seconds = time.perf_counter(), None
  process = subprocess.Popen(
    [sys.executable, *command],
    cwd=_ROOT,
    env={**os.environ, 'XDG_CACHE_HOME': caches},
    stdout=subprocess.PIPE,
    text=True,
  )
  for line in process.stdout:
    if until and seconds is None and line.startswith(until):
      seconds = time.perf_counter() - start
  if process.wait() not in (0, 1):  # --help exits with 1
    raise RuntimeError(f'{command} ended with {process.returncode}')
  return seconds or time.perf_counter() - start


def measure() -> dict[str, float]:
  """Times every command once; returns seconds by name."""
  with tempfile.TemporaryDirectory() as folder:
    caches = f'{folder}/caches'

    def run(name, *more, until='round  1/'):
      workdir = f'--workdir={folder}/{name}'
      return timed(['main.py', workdir, *more], caches, until)

    def sweep(name):
      command = ['-m', 'lca.sweep', '--config=configs/attacks.py']
      workdir = f'--workdir={folder}/{name}'
      seconds = timed([*command, workdir, f'--only={_ONLY}'], caches)
      runs = len(list(pathlib.Path(folder, name).glob('*/summary.json')))
      return seconds / runs

    anew = '--no-compilation-cache'
    return {
      'main.py --help': timed(['main.py', '--help'], caches),
      'first round, cold': run('a'),
      'first round, warm': run('b'),
      'first round, without': run('c', anew),
      'all 20 rounds, warm': run('d', until=None),
      'all 20 rounds, without': run('e', anew, until=None),
      'run of a sweep, cold': sweep('f'),
      'run of a sweep, warm': sweep('g'),
    }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  measured = [measure() for _ in range(_REPEATS.value)]
  seconds = {name: [each[name] for each in measured] for name in measured[0]}
  for name, values in seconds.items():
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f'{name:24} {middle:6.2f} s  ({low:.2f} to {high:.2f})')
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'seconds': seconds,
    }
    text = json.dumps(about, indent=1) + '\n'
    pathlib.Path(_OUTPUT.value).write_text(text)


if __name__ == '__main__':
  app.run(main)
