"""The parts of a run, and the simulation that they make."""

from typing import Any, NamedTuple

from lca.data import FederatedDataset
from lca.federated.clients import LocalGradient, LocalTraining
from lca.federated.placement import Placement
from lca.federated.population import Population
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.federated.streaming import StreamedSimulation
from lca.models import Classifier
from lca.typing import PyTree


class Parts(NamedTuple):
  """The parts of a run: everything except its directory and its loop.

  Attributes:
    data: the data set, spread over the clients.
    population: the clients that a round may draw, and how many attack.
    classifier: the model and its loss.
    train: a client's part of a round.
    server: the server's part of a round, and the attack before it.
    seed: decides all that is random in the run.
    placement: the devices that a round is spread over.
    initial: variables of the model to start from; None takes the model's own.
    attackers: an attacker's training, if the attack has one of its own.
    by_class: True measures the test accuracy of each class.
    stream: None holds all updates of a round. Otherwise the options of a
      `StreamedSimulation`.
  """

  data: FederatedDataset
  population: Population
  classifier: Classifier
  train: LocalGradient
  server: Server
  seed: int
  placement: Placement
  initial: PyTree | None = None
  attackers: LocalTraining | None = None
  by_class: bool = False
  stream: dict[str, Any] | None = None

  def simulation(self) -> Simulation:
    """Returns the simulation of these parts, ready for its first round."""
    parts = self._asdict()
    del parts['stream']
    if self.stream is None:
      return Simulation(**parts)
    return StreamedSimulation(**parts, **self.stream)
