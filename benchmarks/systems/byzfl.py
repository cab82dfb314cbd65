"""byzfl: its Client and Server, with its Average and Krum.

The order of calls is that of byzfl's own benchmark in its mode FedAvg: each
client takes local steps with `compute_model_update`, and the server aggregates
the clients' weights with `update_model_with_weights`. byzfl knows models by
their names in its own module, so the CNN is put there. Its clients keep the
state of their optimisers from round to round; here it is cleared, since Adam
starts anew in the paper. Krum sums n - f - 1 distances, one more than the
paper's. Adam is fused. The CNN keeps PyTorch's default memory format, because
byzfl's flat vectors do not allow `channels_last`.
"""

# ruff: noqa: E402  (the imports below need the module above them)

import functools
import sys
import types

# byzfl imports torchvision for data sets that are not used here. If torchvision
# was built for CUDA and PyTorch for CPUs, the import ends with "operator
# torchvision::nms does not exist" (torchvision 0.28). Without this module it
# does not look for its operators.
sys.modules['torchvision._meta_registrations'] = types.ModuleType('empty')

import byzfl
import torch
from byzfl.fed_framework import models
from torch.utils import data

from benchmarks.systems import common, torch_parts


def loader(inputs, labels, batch_size):
  """Returns a client's batches as byzfl wants them."""
  examples = data.TensorDataset(inputs, labels)
  return data.DataLoader(examples, batch_size, shuffle=True)


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  torch.manual_seed(0)
  models.CNN = functools.partial(torch_parts.CNN, tuned=False)
  both = {
    'model_name': 'CNN',
    'device': 'cpu',
    'learning_rate': task.learning_rate,
    'weight_decay': 0.0,
    'milestones': [],
    'learning_rate_decay': 1.0,
    'optimizer_name': 'Adam',
    'optimizer_params': {'fused': True},
  }
  clients = [
    byzfl.Client(
      {
        **both,
        'loss_name': 'CrossEntropyLoss',
        'LabelFlipping': False,
        'nb_labels': 10,
        'momentum': 0.0,
        'training_dataloader': loader(inputs, labels, task.batch_size),
        'store_per_client_metrics': False,
      }
    )
    for inputs, labels in torch_parts.tensors(task, tuned=False)
  ]
  rule = {'name': 'Average', 'parameters': {}}
  if task.rule == 'krum':
    rule = {'name': 'Krum', 'parameters': {'f': task.f}}
  server = byzfl.Server(
    {
      **both,
      'aggregator_info': rule,
      'pre_agg_list': [],
      'test_loader': loader(
        *torch_parts.tensors(task, tuned=False)[0], task.batch_size
      ),
    }
  )
  server.set_model_state(
    torch_parts.model_of(task.weights, tuned=False).state_dict()
  )
  clock = common.Clock()
  clock.start()
  for _ in range(task.rounds):
    model, weights = server.get_dict_parameters(), []
    for client in clients:
      client.set_model_state(model)
      client.optimizer.state.clear()
      client.compute_model_update(task.epochs * task.num_batches)
      weights.append(client.get_flat_parameters())
    clock.split()
    server.update_model_with_weights(weights)
    clock.lap()
  common.report(
    clock,
    torch_parts.weights_of(server.get_dict_parameters()),
    result,
    ['byzfl', 'torch'],
  )


if __name__ == '__main__':
  main()
