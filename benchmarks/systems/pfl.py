"""pfl, Apple's pfl-research: FederatedAveraging in its SimulatedBackend.

The model is a PyTorchModel, and local training is pfl's own loop. pfl has no
robust rules; Krum is a Postprocessor, pfl's interface for such steps: it keeps
each client's update and replaces the aggregate by one of them. pfl cuts a
client's data into batches in their order, so that each round gives it a
shuffled copy. At the first round pfl always evaluates each client's model
before and after its training, which makes that round longer.

One process runs all clients, with PyTorch's threads on all cores; pfl spreads
clients over processes only under a launcher such as torchrun. The CNN and Adam
are tuned (see `torch_parts`).
"""

import functools

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.postprocessor.base import Postprocessor
from pfl.stats import MappedVectorStatistics

from benchmarks.systems import common, torch_parts


class Model(torch.nn.Module):
  """The CNN with the two methods that pfl calls."""

  def __init__(self, weights: common.Weights):
    super().__init__()
    self.cnn = torch_parts.model_of(weights)

  def loss(self, inputs, labels):
    """Returns the mean loss of a batch."""
    return torch.nn.functional.cross_entropy(self.cnn(inputs), labels)

  @torch.no_grad()
  def metrics(self, inputs, labels):
    """Returns the metrics of a client."""
    total = self.loss(inputs, labels).item() * len(labels)
    return {'loss': Weighted(total, len(labels))}


class Server(Postprocessor):
  """Notes when the clients have trained, and applies Krum if the task says so.

  Args:
    task: names the rule.
    clock: times the rounds.
  """

  def __init__(self, task: common.Task, clock: common.Clock):
    self._task, self._clock = task, clock
    self._updates = []

  def postprocess_one_user(self, *, stats, user_context):
    """Keeps a copy of an update for Krum; pfl writes over the original."""
    if self._task.rule == 'krum':
      self._updates.append({k: x.clone() for k, x in stats.items()})
    return stats, Metrics()

  def postprocess_server(self, *, stats, central_context, aggregate_metrics):
    """Replaces the sum of all updates by the one that Krum selects."""
    self._clock.split()
    if self._updates:
      rows = [update.values() for update in self._updates]
      winner = self._updates[torch_parts.krum(rows, self._task.f)]
      stats, self._updates = MappedVectorStatistics(winner), []
    return stats, Metrics()


class Timing(TrainingProcessCallback):
  """Starts and stops the clock; see `TrainingProcessCallback`."""

  def __init__(self, clock: common.Clock):
    self._clock = clock

  def on_train_begin(self, *, model):
    """Begins the first round."""
    self._clock.start()
    return Metrics()

  def after_central_iteration(
    self, aggregate_metrics, model, *, central_iteration
  ):
    """Ends a round."""
    self._clock.lap()
    return False, Metrics()


def main() -> None:
  """Runs the rounds and reports their times."""
  task, result, _ = common.arguments()
  torch.manual_seed(0)
  clients = torch_parts.tensors(task)

  def shuffled(client):
    inputs, labels = clients[client]
    order = torch.randperm(len(labels))
    return PyTorchTensorDataset((inputs[order], labels[order]))

  sampler = get_user_sampler('minimize_reuse', range(task.num_clients))
  users = FederatedDataset(shuffled, sampler)
  module, clock = Model(task.weights), common.Clock()
  model = PyTorchModel(
    module,
    functools.partial(torch.optim.Adam, fused=True),
    torch.optim.SGD(module.parameters(), lr=1.0),
  )
  FederatedAveraging().run(
    NNAlgorithmParams(
      central_num_iterations=task.rounds,
      evaluation_frequency=task.rounds + 1,
      train_cohort_size=task.num_clients,
      val_cohort_size=0,
    ),
    SimulatedBackend(users, users, [WeightByUser(), Server(task, clock)]),
    model,
    NNTrainHyperParams(
      local_batch_size=task.batch_size,
      local_num_epochs=task.epochs,
      local_learning_rate=task.learning_rate,
    ),
    NNEvalHyperParams(local_batch_size=None),
    [Timing(clock)],
  )
  weights = torch_parts.weights_of(module.cnn.state_dict())
  common.report(clock, weights, result, ['pfl', 'torch'])


if __name__ == '__main__':
  main()
