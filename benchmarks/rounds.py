"""Times rounds of LEGATO's setting: 25 workers, a gradient of 50 images each.

    python -m benchmarks.rounds --output=rounds.json
    python -m benchmarks.rounds --data=mnist --presets=fig5,krum

A round consists of the workers' examples and gradients, the attack, the rule
and the server's optimiser. A test of the model is timed apart.
"""

import json
import pathlib
import statistics
import tempfile
import time

import jax
from absl import app, flags

from benchmarks import record
from configs import legato_mnist
from lca.experiment import host, train

_PRESETS = flags.DEFINE_multi_string(
  'presets',
  ['legato', 'fig5,legato', 'fig3_iid,legato'],
  'Presets of configs/legato_mnist.py.',
)
_DATA = flags.DEFINE_string(
  'data', 'fashion_mnist', 'The data set, config.data.name.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 10, 'Rounds that are timed.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)


def seconds_of(presets: str) -> dict[str, list[float]]:
  """Returns the seconds of each round and of each test of the model.

  Args:
    presets: names of presets of configs/legato_mnist.py, joined by commas.
  """
  config = legato_mnist.get_config(presets)
  config.data.name = _DATA.value
  with tempfile.TemporaryDirectory() as workdir:
    simulation = train.set_up(config, workdir).simulation
    state = simulation.init()
    seconds = {'round': [], 'test': []}
    for i in range(_ROUNDS.value + 1):
      start = time.perf_counter()
      state, _ = simulation.run_round(state, i)
      jax.block_until_ready(state)
      seconds['round'].append(time.perf_counter() - start)
    for _ in range(3):
      start = time.perf_counter()
      simulation.evaluate(state)
      seconds['test'].append(time.perf_counter() - start)
  # The first round and the first test compile.
  return {name: values[1:] for name, values in seconds.items()}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  host.use_all_cores()
  seconds = {}
  for presets in _PRESETS.value:
    seconds[presets] = seconds_of(presets)
    medians = [
      f'{name} {statistics.median(values):.2f} s'
      for name, values in seconds[presets].items()
    ]
    print(f'{presets:16}', *medians)
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'data': _DATA.value,
      'seconds': seconds,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(about, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
