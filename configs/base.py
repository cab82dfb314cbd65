"""Every key that settings share, its default and what it means.

Where there is a choice, None leaves it to the code, which says there what it
takes.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import presets


def base() -> ConfigDict:
  """The layerwise cosine paper's federated training, without its data."""
  config = ConfigDict()
  config.seed = 0  # of all that is random in a run
  config.num_rounds = 100  # may grow when a run is continued

  config.data = ConfigDict()
  config.data.name = placeholder(str)  # see lca.data.load
  # The population; None where the partition finds it in the data.
  config.data.num_clients = 200
  config.data.min_examples = 30  # clients with fewer are dropped
  # Training examples that no client but the server itself holds and trains on.
  config.data.root_examples = 0

  config.model = ConfigDict(presets.models()['cnn'])

  config.client = ConfigDict()
  config.client.mode = 'training'  # or 'gradient', see `federated_sgd`
  config.client.optimizer = 'adam'  # fresh in every round
  config.client.learning_rate = 1e-3
  config.client.batch_size = 256
  config.client.local_epochs = 10
  _of_all_clients(config.client)

  config.server = ConfigDict(presets.servers()['sgd'])
  config.server.clients_per_round = 100

  config.train = ConfigDict()
  # 'stop' or 'continue' after a round whose aggregate is not finite; may change
  # when a run is continued.
  config.train.on_nonfinite = 'stop'

  config.eval = ConfigDict()
  config.eval.every = 1  # rounds; the last one is always evaluated
  config.eval.batch_size = 100
  # Scope of the layers whose normalised norms (LEGATO's Eq. 2) and factors are
  # among the metrics, such as 'leaf'; None for none.
  config.eval.layers = placeholder(str)

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 10  # rounds; the last one is always saved
  config.checkpoint.keep = 2  # older ones are deleted

  config.parallel = ConfigDict()
  # How many devices share a round, as many of each process; None is all.
  config.parallel.mesh = placeholder(int)
  # Clients that one vmap holds; None is 1 on CPU and 32 elsewhere.
  config.parallel.chunk_size = placeholder(int)
  # Examples, at most, whose gradients are computed at once; None is 32 on CPU
  # and the whole batch elsewhere.
  config.parallel.microbatch_size = placeholder(int)
  return config


def federated_sgd(config: ConfigDict, batch_size: int) -> None:
  """Turns the clients' part of a round into one gradient of one batch."""
  config.client = ConfigDict()
  config.client.mode = 'gradient'
  config.client.batch_size = batch_size
  config.client.momentum = 0.0  # of the workers
  _of_all_clients(config.client)


def _of_all_clients(client: ConfigDict) -> None:
  """Adds the keys of both modes; a dtype is 'float32' or 'bfloat16'."""
  # The share of a round's honest clients, on average, that do not answer.
  client.drop_rate = 0.0
  # Of forward and backward passes. Parameters, optimisers and losses, and all
  # of the testing, are float32.
  client.dtype = 'float32'
  # Of the updates that the server stores and aggregates, and of what a rule
  # remembers of them. Sums, distances and the model are float32.
  client.update_dtype = 'float32'


def archives(data: ConfigDict) -> None:
  """Adds the keys of data that are downloaded, or prepared from archives."""
  data.archive_dir = placeholder(str)  # where the archives lie; None downloads
  data.data_dir = placeholder(str)  # of prepared data; None is TFDS's
