"""Data sets, their partition over clients, and what one round draws."""

from lca.data import partitions
from lca.data.dataset import Dataset, Split
from lca.data.federated import ClientData, FederatedDataset, federate
from lca.data.plot import plot_partition
from lca.data.sources import load

__all__ = [
  'ClientData',
  'Dataset',
  'FederatedDataset',
  'Split',
  'federate',
  'load',
  'partitions',
  'plot_partition',
]
