"""The systems: their adapters, the packages these need, and what differs."""

from typing import NamedTuple


class System(NamedTuple):
  """A row of the table.

  Attributes:
    title: the name in the table.
    module: the adapter's file in this folder, without its suffix.
    environment: the name of the virtual environment; empty for the Python that
      runs the driver.
    requirements: what pip installs into the environment.
    words: further words on the adapter's command line.
    note: how the round differs from the task, as a sentence; may be empty.
  """

  title: str
  module: str
  environment: str = ''
  requirements: tuple[str, ...] = ()
  words: tuple[str, ...] = ()
  note: str = ''


_TORCH = 'torch==2.13.0'
_PYTORCH = (_TORCH, 'numpy==2.4.6')

SYSTEMS = {
  'lca': System('lca', 'lca_'),
  'pytorch': System('PyTorch', 'pytorch', 'pytorch', _PYTORCH),
  'pytorch_tuned': System(
    'PyTorch, tuned',
    'pytorch',
    'pytorch',
    _PYTORCH,
    words=('tuned',),
    note='Convolutions in channels_last, Adam fused, also in the systems below '
    'that use PyTorch.',
  ),
  'flexible': System(
    'FLEXible and flex-clash',
    'flexible',
    'flexible',
    # FLEXible does without PyTorch, and flex-clash fails, unless tensorly finds
    # packaging, which it does not declare.
    ('flexible-fl==0.7.0', 'flexclash==0.0.3', 'packaging==25.0', _TORCH),
  ),
  'flower': System(
    'Flower', 'flower', 'flower', ('flwr[simulation]==1.41.0', _TORCH)
  ),
  'byzfl': System(
    'byzfl',
    'byzfl',
    'byzfl',
    ('byzfl==0.0.11', _TORCH, 'torchvision==0.28.0'),
    note='Krum sums n - f - 1 distances instead of n - f - 2. byzfl does not '
    'allow channels_last.',
  ),
  'pfl': System(
    'pfl',
    'pfl',
    'pfl',
    ('pfl[pytorch]==0.6.0', _TORCH),
    note='Krum is our own Postprocessor. The first round also evaluates the '
    'clients.',
  ),
  'fedjax': System(
    'fedjax',
    'fedjax',
    'fedjax',
    # fedjax calls jax.tree_map, which jax 0.6 removed.
    ('fedjax==0.0.17', 'jax==0.5.3', 'jaxlib==0.5.3', 'optax==0.2.8'),
    note='Krum is our own, over for_each_client. A client trains on 320 '
    'examples, because every batch is filled up.',
  ),
}
"""All systems by the name that `--only` takes, in the table's order."""

RULES = ('fedavg', 'krum')
