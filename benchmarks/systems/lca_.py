"""The package of this repository, through the loop's own parts.

The config is `configs/fashion_mnist.py` with the task's numbers. Set-up is that
of `main.py`: a JAX device for each core, and the round's programs are compiled
before the first round. Unlike `main.py` it takes no compiled programs from
earlier runs. `Simulation.run_round` is called as `lca.experiment.train` calls
it, so that a thread reads the next round's examples while a round trains.
"""

import dataclasses

import jax
import numpy as np

from benchmarks.systems import common
from configs import fashion_mnist
from lca import data
from lca.experiment import host, settings, train


def experiment_of(task: common.Task) -> train.Experiment:
  """Returns the experiment of a task, compiled and without a directory."""
  config = fashion_mnist.get_config(f'natural,{task.rule}')
  config.num_rounds = task.rounds
  config.server.clients_per_round = task.num_clients
  config.data.min_examples = 1
  config.client.local_epochs = task.epochs
  config.client.batch_size = task.batch_size
  config.client.learning_rate = task.learning_rate
  if task.rule == 'krum':
    config.aggregator.f = task.f
  dataset = data.from_arrays(
    train=(task.images.reshape(-1, 28, 28, 1), task.labels.reshape(-1)),
    test=(task.test_images[..., None], task.test_labels),
    num_classes=10,
    mean=task.mean,
    std=task.std,
    owners=np.repeat(np.arange(task.num_clients), task.labels.shape[1]),
  )
  # The config names the data; here they are in memory already.
  ready = dataclasses.replace(
    settings.from_config(config), load=lambda: dataset
  )
  return train.prepare(ready, None)


def nested(weights: common.Weights) -> dict:
  """Returns weights by `LAYER/NAME` as Flax's nested dict of parameters."""
  params = {}
  for name, array in weights.items():
    layer, _, leaf = name.partition('/')
    params.setdefault(layer, {})[leaf] = array
  return params


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  host.use_all_cores()
  simulation = experiment_of(task).simulation
  state = simulation.init()
  params = jax.tree.map(
    lambda new, old: jax.device_put(new, old.sharding),
    nested(task.weights),
    state.variables['params'],
  )
  state = state._replace(variables={**state.variables, 'params': params})
  clock = common.Clock()
  step = simulation.programs.step

  def watched_step(*arguments):
    jax.block_until_ready(arguments)  # until the clients have trained
    clock.split()
    return step(*arguments)

  simulation.programs = simulation.programs._replace(step=watched_step)
  jax.block_until_ready(state)
  clock.start()
  for i in range(task.rounds):
    state, _ = simulation.run_round(state, i, last=i == task.rounds - 1)
    jax.block_until_ready(state)
    clock.lap()
  weights = {
    f'{layer}/{name}': array
    for layer, leaves in jax.device_get(state.variables['params']).items()
    for name, array in leaves.items()
  }
  common.report(clock, weights, result, ['jax', 'jaxlib', 'flax', 'optax'])


if __name__ == '__main__':
  main()
