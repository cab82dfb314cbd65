"""fedjax: its `fed_avg`, and Krum over its `for_each_client`.

fedjax has no robust rules, so that Krum is this file's own: it takes the
updates of `for_each_client`, the part of fedjax from which such algorithms are
built. The model is the CNN in `jax.lax`, the optimisers are fedjax's. Its
batches have one size: the last of an epoch is filled up with further examples,
so that a client trains on 320 examples and not on 300.

`for_each_client` runs on one JAX device, with XLA's threads on all cores. Its
other backend, `pmap`, takes a device for each core, but adds an axis of length
one to every update (jax 0.5.3), so that a second round fails.
"""

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg
from jax import lax

from benchmarks.systems import common


def logits(params, x):
  """Computes the CNN of inputs `[batch, 28, 28, 1]`."""
  for name in ('Conv_0', 'Conv_1'):
    kernel = params[f'{name}/kernel']
    layout = ('NHWC', 'HWIO', 'NHWC')
    x = lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', None, None, layout)
    x = jax.nn.relu(x + params[f'{name}/bias'])
  window = (1, 2, 2, 1)
  x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, 'VALID')
  x = x.reshape(len(x), -1)
  x = jax.nn.relu(x @ params['Dense_0/kernel'] + params['Dense_0/bias'])
  return x @ params['Dense_1/kernel'] + params['Dense_1/bias']


def gradient(params, batch, rng):
  """Computes the gradient of the mean loss of a batch."""
  del rng  # the model draws nothing

  def loss(params):
    chosen = jax.nn.log_softmax(logits(params, batch['x']))
    return -jnp.take_along_axis(chosen, batch['y'][:, None], 1).mean()

  return jax.grad(loss)(params)


@jax.jit
def krum(updates, neighbours):
  """Returns the update with the lowest Krum score.

  Args:
    updates: a list of trees.
    neighbours: the number of distances in a score, n - f - 2.
  """
  rows = jnp.stack(
    [jnp.concatenate([x.ravel() for x in jax.tree.leaves(u)]) for u in updates]
  )
  squares = (rows * rows).sum(1)
  between = squares[:, None] + squares - 2 * rows @ rows.T
  between = jnp.where(jnp.eye(len(rows), dtype=bool), jnp.inf, between)
  near = jnp.arange(len(rows)) < neighbours
  winner = jnp.where(near, jnp.sort(between), 0).sum(1).argmin()
  return jax.tree.map(lambda *leaves: jnp.stack(leaves)[winner], *updates)


def training(optimizer):
  """Returns fedjax's loop over clients, which yields each client's update."""

  def begin(server, rng):
    return server, optimizer.init(server)

  def step(state, batch):
    params, opt_state = state
    opt_state, params = optimizer.apply(
      gradient(params, batch, None), opt_state, params
    )
    return params, opt_state

  def end(server, state):
    return jax.tree.map(jnp.subtract, state[0], server)

  return fedjax.for_each_client(begin, step, end)


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  batches = fedjax.ShuffleRepeatBatchHParams(
    batch_size=task.batch_size, num_epochs=task.epochs
  )
  adam = fedjax.optimizers.adam(task.learning_rate)
  inputs, labels = task.inputs()[..., None], task.labels.astype(np.int32)
  datasets = [
    fedjax.ClientDataset({'x': x, 'y': y})
    for x, y in zip(inputs, labels, strict=True)
  ]
  params = {name: jnp.asarray(x) for name, x in task.weights.items()}
  average = fed_avg.federated_averaging(
    gradient, adam, fedjax.optimizers.sgd(1.0), batches
  )
  state, each_client = average.init(params), training(adam)
  keys = jax.random.split(jax.random.PRNGKey(0), task.num_clients)
  clock = common.Clock()
  clock.start()
  for _ in range(task.rounds):
    if task.rule == 'fedavg':
      clients = [(i, x, keys[i]) for i, x in enumerate(datasets)]
      state, _ = average.apply(state, clients)
      params = jax.block_until_ready(state.params)
    else:
      clients = [
        (i, x.shuffle_repeat_batch(batches), keys[i])
        for i, x in enumerate(datasets)
      ]
      updates = [update for _, update in each_client(params, clients)]
      jax.block_until_ready(updates)
      clock.split()
      update = krum(updates, task.num_clients - task.f - 2)
      params = jax.tree.map(jnp.add, params, update)
      jax.block_until_ready(params)
    clock.lap()
  common.report(clock, params, result, ['fedjax', 'jax', 'jaxlib'])


if __name__ == '__main__':
  main()
