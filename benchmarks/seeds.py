"""Times rounds of several seeds at once beside the same rounds one by one.

    python -m benchmarks.seeds --output=seeds.json

The settings are those of `configs/digits.py`: with its CNN of 1.6 million
parameters, and with a CNN of a thousand. All programs are compiled before. The
rounds take turns, and the medians count.
"""

import json
import pathlib
import statistics
import time

from absl import app, flags

from benchmarks import record
from configs import digits
from lca.experiment import host, settings, together

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_SEEDS = flags.DEFINE_integer('seeds', 4, 'Seeds at once.', lower_bound=2)
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Timed rounds.', lower_bound=1)

SETTINGS = {
  'CNN of the default run': {},
  'CNN of a thousand parameters': {
    'model.features': (4, 4),
    'model.hidden': (8,),
  },
}
"""Values to set in the config of the digits, by name."""


def measure(changes: dict[str, object]) -> dict[str, float]:
  """Returns the milliseconds of a round of all seeds, in both ways.

  Args:
    changes: values to set in the config, by key.
  """
  parts = []
  for seed in range(_SEEDS.value):
    config = digits.get_config('krum,label_flipping')
    config.update_from_flattened_dict({**changes, 'seed': seed})
    parts.append(settings.from_config(config).parts())
  at_once = together.stacked(parts)
  alone = [each.simulation() for each in parts]
  states = at_once.init(), [each.init() for each in alone]
  seconds = []
  for round_idx in range(1 + _ROUNDS.value):
    begun = time.perf_counter()
    stacked, _ = at_once.run_round(states[0], round_idx)
    half = time.perf_counter()
    single = [
      each.run_round(state, round_idx)[0]
      for each, state in zip(alone, states[1], strict=True)
    ]
    seconds.append((half - begun, time.perf_counter() - half))
    states = stacked, single
  # The first round compiles.
  together_ms, alone_ms = (
    1000 * statistics.median(each) for each in zip(*seconds[1:], strict=True)
  )
  return {'at once': together_ms, 'one by one': alone_ms}


def main(argv):
  del argv
  host.use_all_cores()
  measured = {name: measure(changes) for name, changes in SETTINGS.items()}
  for name, ms in measured.items():
    print(
      name, *(f'{way} {value:.0f} ms' for way, value in ms.items()), sep=', '
    )
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'seeds': _SEEDS.value,
      'rounds': _ROUNDS.value,
      'milliseconds': measured,
    }
    text = json.dumps(about, indent=1)
    pathlib.Path(_OUTPUT.value).write_text(f'{text}\n')


if __name__ == '__main__':
  app.run(main)
