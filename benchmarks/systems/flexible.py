"""The layerwise cosine paper's own stack: FLEXible, flex-clash and PyTorch.

A `FlexPool` of a server and the clients runs FLEXible's PyTorch primitives: the
server's model is deployed to the clients, these train and are collected, the
rule aggregates, and the server takes the result. The rules are FLEXible's
`fed_avg` and flex-clash's `multikrum` with m = 1. The clients' training is the
user's code in FLEXible; here it is tuned (see `torch_parts`).
"""

import numpy as np
import torch
from flex import data, pool
from flexclash.pool import multikrum

from benchmarks.systems import common, torch_parts


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  torch.manual_seed(0)
  clients = data.FedDataset(
    {
      i: data.Dataset.from_array(inputs, labels)
      for i, (inputs, labels) in enumerate(
        zip(task.inputs(), task.labels.astype(np.int64), strict=True)
      )
    }
  )

  @pool.init_server_model
  def initial():
    return {'model': torch_parts.model_of(task.weights)}

  @pool.evaluate_server_model
  def final_weights(server_model):
    return torch_parts.weights_of(server_model['model'].state_dict())

  def train(client_model, client_data):
    inputs, labels = map(torch.from_numpy, client_data.to_numpy())
    inputs = inputs[:, None].contiguous(memory_format=torch.channels_last)
    torch_parts.train(
      client_model['model'], inputs, labels, **torch_parts.settings(task)
    )

  everybody = pool.FlexPool.client_server_pool(clients, initial)
  servers, aggregators = everybody.servers, everybody.aggregators
  clock = common.Clock()
  clock.start()
  for _ in range(task.rounds):
    chosen = everybody.clients
    servers.map(pool.deploy_server_model_pt, chosen)
    chosen.map(train)
    aggregators.map(pool.collect_clients_weights_pt, chosen)
    clock.split()
    if task.rule == 'fedavg':
      aggregators.map(pool.fed_avg)
    else:
      aggregators.map(multikrum, f=task.f, m=1)
    aggregators.map(pool.set_aggregated_weights_pt, servers)
    clock.lap()
  (weights,) = servers.map(final_weights)
  packages = ['flexible-fl', 'flexclash', 'torch']
  common.report(clock, weights, result, packages)


if __name__ == '__main__':
  main()
