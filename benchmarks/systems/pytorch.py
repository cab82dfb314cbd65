"""A plain PyTorch loop: the reference that the other systems are beside.

Clients train one after the other in one process, in one model that gets the
server's state_dict before each client. PyTorch uses all cores for each
operation, its default. The word `tuned` on the command line turns on what
PyTorch's performance tuning guide recommends on CPUs (see `torch_parts`).
"""

import torch

from benchmarks.systems import common, torch_parts


def mean(states):
  """Returns the mean of state_dicts."""
  return {
    name: torch.stack([state[name] for state in states]).mean(0)
    for name in states[0]
  }


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, words = common.arguments()
  tuned = 'tuned' in words
  torch.manual_seed(0)
  model = torch_parts.model_of(task.weights, tuned)
  clients = torch_parts.tensors(task, tuned)
  settings = torch_parts.settings(task)
  server = {k: x.clone() for k, x in model.state_dict().items()}
  clock = common.Clock()
  clock.start()
  for _ in range(task.rounds):
    states = []
    for inputs, labels in clients:
      model.load_state_dict(server)
      torch_parts.train(model, inputs, labels, tuned=tuned, **settings)
      states.append({k: x.clone() for k, x in model.state_dict().items()})
    clock.split()
    if task.rule == 'fedavg':
      server = mean(states)
    else:
      updates = [[x[k] - server[k] for k in server] for x in states]
      server = states[torch_parts.krum(updates, task.f)]
    clock.lap()
  common.report(clock, torch_parts.weights_of(server), result, ['torch'])


if __name__ == '__main__':
  main()
