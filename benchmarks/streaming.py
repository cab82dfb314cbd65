"""Measures rounds of many clients whose updates are streamed, or stacked.

    python -m benchmarks.streaming --output=streaming.json

A round takes the layerwise cosine paper's CNN (1,625,866 parameters) and all
60,000 training images of Fashion-MNIST, spread over as many clients as a round
has: one epoch, batches of 64. Each round runs in a process of its own, whose
peak memory counts. The training is compiled before the time starts, the
server's part of a streamed round within it. The model after a streamed round is
compared with that after a stacked one. A stacked round takes one device where
two, between which updates are exchanged, need more memory than there is.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import record
from configs import fashion_mnist
from lca.experiment import host, settings
from lca.federated import plan

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_CLIENTS = flags.DEFINE_multi_integer(
  'clients', [100, 1000], 'Clients in a round.', lower_bound=5
)
_PRESETS = flags.DEFINE_multi_string(
  'presets',
  ['fedavg', 'krum', 'layerwise_cosine_krum', 'median'],
  'Presets of configs/fashion_mnist.py.',
)
_ROUND = flags.DEFINE_list(
  'round', None, 'PRESET,CLIENTS,STREAM,MODEL: for the processes of a round.'
)


def run_round(preset: str, clients: int, stream: bool, model: str) -> None:
  """Runs one round, writes its model, and prints what was measured.

  Args:
    preset: of configs/fashion_mnist.py.
    clients: number of clients, which all take part.
    stream: True streams the updates.
    model: file for the model.
  """
  host.use_all_cores()
  config = fashion_mnist.get_config(preset)
  config.data.num_clients = config.server.clients_per_round = clients
  config.client.local_epochs, config.client.batch_size = 1, 64
  config.parallel.stream = stream
  simulation = settings.from_config(config).parts().simulation()
  mesh = simulation.placement.mesh
  if plan.of(simulation).total > plan.memory_limit(mesh):  # also compiles it
    config.parallel.mesh = 1
    simulation = settings.from_config(config).parts().simulation()
    plan.check(simulation, plan.memory_limit(simulation.placement.mesh))
  state = simulation.init()
  before = _peak()
  start = time.perf_counter()
  state, _ = simulation.run_round(state, 0, last=True)
  jax.block_until_ready(state)
  seconds = time.perf_counter() - start
  leaves = jax.tree.leaves(jax.device_get(state.variables))
  np.save(model, np.concatenate([x.ravel() for x in leaves]))
  measured = {
    'seconds': seconds,
    'devices': simulation.placement.devices,
    'before_bytes': before,
    'peak_bytes': _peak(),
  }
  print(json.dumps(measured))


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(preset: str, clients: int) -> dict[str, Any]:
  """Measures a round both ways, each in a process of its own."""
  with tempfile.TemporaryDirectory() as folder:
    measured, models = {}, []
    for way in ('streamed', 'stacked'):
      model = f'{folder}/{way}.npy'
      arguments = [preset, str(clients), str(int(way == 'streamed')), model]
      done = subprocess.run(
        [
          *(sys.executable, '-m', 'benchmarks.streaming'),
          f'--round={",".join(arguments)}',
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
      )
      measured[way] = json.loads(done.stdout.splitlines()[-1])
      models.append(np.load(model))
  streamed, stacked = models
  difference = np.linalg.norm(streamed - stacked) / np.linalg.norm(stacked)
  return measured | {'relative_difference': float(difference)}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  if _ROUND.value:
    preset, clients, stream, model = _ROUND.value
    run_round(preset, int(clients), stream == '1', model)
    return
  rows = []
  for clients in _CLIENTS.value:
    for preset in _PRESETS.value:
      row = {'clients': clients, 'preset': preset} | measure(preset, clients)
      rows.append(row)
      print(json.dumps(row), flush=True)
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'rounds': rows,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(about, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
