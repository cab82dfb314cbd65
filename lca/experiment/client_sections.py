"""The reference of the keys of `client`, one dataclass for each of its modes.

`lca.experiment.sections` has all other keys.
"""

import dataclasses

from lca.options import one_of, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Client:
  """The keys of `client` in both modes.

  Attributes:
    batch_size: examples that one gradient is computed from, at least 1. A
      client that holds fewer takes them all. The last batch of an epoch may be
      smaller.
    drop_rate: the chance, in [0, 1), that an honest client of a round does not
      answer. Its update is then a row of NaN, counted as `dropped`. Attackers
      always answer. If the rule takes an `f`, it must be at least the sum of
      attackers and missing clients in every round; this is checked before the
      first round, as the seed decides who does not answer.
    dtype: `'float32'` or `'bfloat16'`: the type of numbers in the clients'
      forward and backward passes. Parameters, their gradients, optimisers and
      losses stay float32, and so do all tests of the model.
    update_dtype: `'float32'` or `'bfloat16'`: how the server stores the
      clients' updates, and what a rule remembers of them. `'bfloat16'` halves
      their memory. Sums, distances and the model stay float32.
  """

  batch_size: int = 256
  drop_rate: float = 0.0
  dtype: str = 'float32'
  update_dtype: str = 'float32'

  def __post_init__(self):
    whole(1)('client.batch_size', self.batch_size)
    for key in ('dtype', 'update_dtype'):
      one_of('float32', 'bfloat16')(f'client.{key}', getattr(self, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(_Client):
  """The section `client` in the mode `'training'`: clients train for epochs.

  A client sends its trained model minus the server's. The section also has the
  keys of both modes (`_Client`).

  Attributes:
    mode: `'training'`.
    optimizer: a name in `lca.experiment.optimizers.OPTIMIZERS`, used with the
      defaults of its options. Its state starts anew in every round.
    learning_rate: step size of that optimiser, above 0.
    local_epochs: passes over a client's examples in a round, at least 1, each
      in a new random order.
  """

  mode: str = 'training'
  optimizer: str = 'adam'
  learning_rate: float = 1e-3
  local_epochs: int = 10
  # Without an annotation this is no field, and so no key of this mode.
  momentum = 0.0

  def __post_init__(self):
    super().__post_init__()
    whole(1)('client.local_epochs', self.local_epochs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(_Client):
  """The section `client` in the mode `'gradient'`: federated SGD.

  A client draws one batch of its examples in a round and sends minus the
  gradient of the mean loss; the step size is `server.learning_rate`.
  `configs.common.federated_sgd` puts this section into a config. The section
  also has the keys of both modes (`_Client`).

  Attributes:
    mode: `'gradient'`.
    momentum: beta in [0, 1) of the workers' momentum. A client sends
      `m = beta * m + (1 - beta) * x`, where x is minus its gradient and m is
      kept from one of its rounds to the next. 0 keeps none.
  """

  mode: str = 'gradient'
  momentum: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f'client.momentum must lie in [0, 1), got {self.momentum}'
      )


MODES = {'training': Training, 'gradient': Gradient}
