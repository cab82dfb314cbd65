"""Data sets, how they are split over clients, and the arrays of a round."""

from lca.data import partitions
from lca.data.arrays import from_arrays
from lca.data.dataset import Dataset, Split
from lca.data.federated import ClientData, FederatedDataset, federate
from lca.data.partitions import PARTITIONS
from lca.data.plot import plot_partition
from lca.data.sources import SOURCES, load

__all__ = [
  'PARTITIONS',
  'SOURCES',
  'ClientData',
  'Dataset',
  'FederatedDataset',
  'Split',
  'federate',
  'from_arrays',
  'load',
  'partitions',
  'plot_partition',
]
