"""Flower's simulation, on Ray.

Ray has one actor for each core, and each actor computes with one thread, as
Flower's documentation recommends for CPUs: `client_resources` of one CPU. A
ClientApp trains the CNN, tuned as in `torch_parts`; each actor reads the data
once. The strategies are Flower's FedAvg and Krum, without federated evaluation.
Flower needs some of its replies' metrics, so that a client also sends its
number of examples. `run_simulation` is the way to start a simulation from
Python; the command `flwr run` starts the same engine in a further process.
"""

import functools
import os

import torch
from flwr import app, clientapp, serverapp, simulation
from flwr.serverapp import strategy

from benchmarks.systems import common, torch_parts

_TASK = 'SYSTEMS_TASK'  # the actors inherit the environment


@functools.cache
def client_parts():
  """Returns the task, the clients' tensors and a model, once in each actor."""
  task = common.load(os.environ[_TASK])
  return task, torch_parts.tensors(task), torch_parts.CNN()


def train(message: app.Message, context: app.Context) -> app.Message:
  """Trains one client and replies with its weights."""
  task, clients, model = client_parts()
  inputs, labels = clients[context.node_config['partition-id']]
  model.load_state_dict(message.content['arrays'].to_torch_state_dict())
  torch_parts.train(model, inputs, labels, **torch_parts.settings(task))
  reply = app.RecordDict(
    {
      'arrays': app.ArrayRecord(model.state_dict()),
      'metrics': app.MetricRecord({'num-examples': len(labels)}),
    }
  )
  return app.Message(content=reply, reply_to=message)


def timed(kind: type, clock: common.Clock) -> type:
  """Returns a strategy's class whose rounds a clock times."""

  class Timed(kind):
    """The strategy `kind`, with calls of the clock."""

    def configure_train(self, *arguments, **options):
      clock.start()
      return super().configure_train(*arguments, **options)

    def aggregate_train(self, server_round, replies):
      replies = list(replies)
      clock.split()
      result = super().aggregate_train(server_round, replies)
      clock.lap()
      return result

  return Timed


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  clock, final = common.Clock(), {}
  options = {
    'fraction_evaluate': 0.0,
    'min_train_nodes': task.num_clients,
    'min_available_nodes': task.num_clients,
  }
  if task.rule == 'fedavg':
    chosen = timed(strategy.FedAvg, clock)(**options)
  else:
    chosen = timed(strategy.Krum, clock)(num_malicious_nodes=task.f, **options)
  server = serverapp.ServerApp()

  @server.main()
  def run(grid, context):
    initial = torch_parts.model_of(task.weights).state_dict()
    done = chosen.start(grid, app.ArrayRecord(initial), num_rounds=task.rounds)
    final.update(done.arrays.to_torch_state_dict())

  client = clientapp.ClientApp()
  client.train()(train)
  simulation.run_simulation(
    server,
    client,
    num_supernodes=task.num_clients,
    backend_config={
      'init_args': {'num_cpus': torch.get_num_threads()},
      'client_resources': {'num_cpus': 1, 'num_gpus': 0.0},
    },
  )
  weights = torch_parts.weights_of(final)
  common.report(clock, weights, result, ['flwr', 'ray', 'torch'])


if __name__ == '__main__':
  # Ray's actors find `train` by the name of this module, which is not __main__.
  from benchmarks.systems import flower

  flower.main()
