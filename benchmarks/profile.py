"""Says where a round spends its time.

    python -m benchmarks.profile --output=profile.json

Three settings: the default run on the digits, one of the layerwise cosine
paper's (its CNN on Fashion-MNIST, 20 clients, one epoch), and one of LEGATO's
figures (25 gradients of 50 images). `round` is a whole round as a run makes it.
`clients`, `attack` and `server` are its programs, each waited for, and `host`
is what is left of the round beside them. `read` is the work of the thread that
reads the next round's examples meanwhile. `test` is a test of the model,
`forward` the model's bare forward pass over the same images.
"""

import functools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import app, flags
from jax import lax
from jax.sharding import PartitionSpec as P

from benchmarks import record
from configs import digits, fashion_mnist, legato_mnist
from lca.experiment import host, train
from lca.federated.simulation import Programs, Simulation
from lca.stacked.sharding import AXIS

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 7, 'Rounds that are timed.', lower_bound=1
)


def default() -> ml_collections.ConfigDict:
  """The default run of main.py, under an attack."""
  return digits.get_config('layerwise_cosine_krum,model_replacement')


def paper() -> ml_collections.ConfigDict:
  """Fashion-MNIST: the paper's CNN, 20 clients a round, one epoch."""
  config = fashion_mnist.get_config('layerwise_cosine_krum,model_replacement')
  config.server.clients_per_round = 20
  config.client.local_epochs, config.client.batch_size = 1, 64
  return config


def legato() -> ml_collections.ConfigDict:
  """LEGATO's first figures, with Fashion-MNIST in MNIST's place."""
  config = legato_mnist.get_config('legato')
  config.data.name = 'fashion_mnist'
  return config


def timed(calls: int, *functions: Callable[[], Any]) -> list[float]:
  """Returns the median seconds of several calls of each function.

  The functions take turns, so that other work slows all of them. A first call
  of each is not timed.
  """
  seconds = [[] for _ in functions]
  for _ in range(1 + calls):
    for function, times in zip(functions, seconds, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(function())
      times.append(time.perf_counter() - start)
  return [statistics.median(times[1:]) for times in seconds]


def seconds_of(simulation: Simulation, rounds: int) -> dict[str, float]:
  """Returns the seconds of a round and of its parts, by name.

  Args:
    simulation: of the setting.
    rounds: rounds that are timed.
  """
  state, i = simulation.init(), 0

  def run():
    nonlocal state, i
    state, _ = simulation.run_round(state, i)
    i += 1
    return state

  (whole,) = timed(rounds, run)

  # The same rounds, in which each program is waited for.
  parts = {name: [] for name in ('clients', 'attack', 'server')}

  def watched(name, program):
    def call(*arguments):
      jax.block_until_ready(arguments)
      start = time.perf_counter()
      result = jax.block_until_ready(program(*arguments))
      parts[name].append(time.perf_counter() - start)
      return result

    return program and call

  programs = simulation.programs
  simulation.programs = Programs(*map(watched, parts, programs))
  timed(rounds, run)
  simulation.programs = programs
  # A long round calls the training several times.
  seconds = {name: sum(x) / (1 + rounds) for name, x in parts.items()}
  drawn = simulation._draw(i)
  test, forward = timed(
    rounds,
    functools.partial(simulation.evaluate, state),
    forward_pass(simulation, state),
  )
  (read,) = timed(rounds, lambda: simulation._read(drawn))
  return {
    'round': whole,
    **seconds,
    'host': whole - sum(seconds.values()),
    'read': read,
    'test': test,
    'forward': forward,
  }


def forward_pass(simulation: Simulation, state: Any) -> Callable[[], Any]:
  """Returns a function that computes the logits of all test images."""
  (block,) = simulation._evaluation._blocks['test']
  images, *_ = block()
  logits = simulation.classifier.logits
  everywhere = jax.jit(
    jax.shard_map(
      lambda variables, x: lax.map(functools.partial(logits, variables), x),
      mesh=simulation.placement.mesh,
      in_specs=(P(), P(AXIS)),
      out_specs=P(AXIS),
      check_vma=False,
    )
  )
  return lambda: everywhere(simulation.everywhere(state), images)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  host.use_all_cores()
  measured = {}
  for setting in (default, paper, legato):
    with tempfile.TemporaryDirectory() as workdir:
      simulation = train.set_up(setting(), workdir).simulation
      seconds = seconds_of(simulation, _ROUNDS.value)
    measured[setting.__name__] = seconds
    shown = '  '.join(f'{name} {1e3 * x:.1f}' for name, x in seconds.items())
    ratio = seconds['test'] / seconds['forward']
    print(f'{setting.__name__:8} ms: {shown}  test / forward {ratio:.2f}')
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'seconds': measured,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(about, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
