"""Federated learning on a data set that is larger than memory.

The test runs this file as a program and measures its memory.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

IMAGE = (208, 200, 3)
TRAIN, TEST = 160_000, 2_400  # images: 20 GB and 0.3 GB
PER_CLIENT, CLIENTS = 32, 32
ROUND_BYTES = CLIENTS * PER_CLIENT * 208 * 200 * 3


def has_sparse_files(directory):
  """Returns True if the file system of a directory has sparse files."""
  with open(directory / 'probe', 'wb') as file:
    file.truncate(2**20)
    return os.fstat(file.fileno()).st_blocks * 512 < 2**20


def make_images(path, size):
  """Writes an array of images of zeros, except the last image, of ones.

  Zeros that are never written take no space in a sparse file.
  """
  images = np.lib.format.open_memmap(path, 'w+', np.uint8, (size, *IMAGE))
  images[-1] = 1


@pytest.mark.skipif(
  not Path('/proc/self/status').exists(), reason='no /proc/self/status'
)
def test_memory_stays_below_two_gibibytes_and_a_round(tmp_path):
  if not has_sparse_files(tmp_path):
    pytest.skip(f'no sparse files in {tmp_path}')
  for split, size in (('train', TRAIN), ('test', TEST)):
    make_images(tmp_path / f'{split}.npy', size)
  result = subprocess.run(
    [sys.executable, __file__, tmp_path],
    env=os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])},
    capture_output=True,
    text=True,
    check=False,
  )
  for split in ('train', 'test'):
    (tmp_path / f'{split}.npy').unlink()  # frees the page cache, too
  assert result.returncode == 0, result.stderr
  read, peak = map(int, result.stdout.split())
  bound = 2**31 + ROUND_BYTES
  assert read > bound  # so not all that was read can have stayed in memory
  assert peak < bound


def main(directory):
  """Runs two rounds; prints the bytes read and the peak memory."""
  import optax
  from flax import linen as nn

  import lca
  from lca import data
  from lca.federated.clients import LocalGradient
  from lca.federated.placement import Placement, clients_mesh
  from lca.federated.population import Population
  from lca.federated.server import Server
  from lca.federated.simulation import Simulation
  from lca.models import Classifier

  class MeanColor(nn.Module):
    @nn.compact
    def __call__(self, x, keys=None):
      return nn.Dense(2)(x.mean((1, 2)))

  def split(name):
    images = np.load(directory / f'{name}.npy', mmap_mode='r')
    index = np.arange(len(images))
    return data.Split(images, index % 2, index // PER_CLIENT)

  train, test = split('train'), split('test')
  assert train.read(np.array([TRAIN - 2, TRAIN - 1])).sum() == np.prod(IMAGE)
  federated = data.federate(
    data.Dataset('large', train, test, 2, (1.0,), (1.0,)),
    partition='natural',
    num_clients=None,
    min_examples=PER_CLIENT,
    seed=0,
  )
  classifier = Classifier(MeanColor(), (1.0,), (1.0,))
  sim = Simulation(
    data=federated,
    population=Population(federated.num_clients, CLIENTS),
    classifier=classifier,
    train=LocalGradient(losses=classifier.losses, batch_size=4),
    server=Server(
      aggregator=lca.stateless(lca.mean, weights=None),
      optimizer=optax.sgd(1.0),
    ),
    seed=0,
    placement=Placement(clients_mesh(), chunk_size=1, eval_batch_size=16),
  )
  state = sim.init()
  rounds = 2
  for round_idx in range(rounds):
    state, _ = sim.run_round(state, round_idx)
  sim.evaluate(state)
  gathers = 16
  for i in range(gathers):
    federated.gather(range(i * CLIENTS, (i + 1) * CLIENTS))
  print((rounds + 1 + gathers) * ROUND_BYTES, peak_bytes())


def peak_bytes():
  """Returns the largest resident memory so far, mapped files included."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM'):
      return int(line.split()[1]) * 1024
  raise LookupError('no VmHWM')


if __name__ == '__main__':
  main(Path(sys.argv[1]))
