"""The optimisers that configs name, for clients and for the server."""

import optax

OPTIMIZERS = {'adam': optax.adam, 'sgd': optax.sgd}


def make(name: str, learning_rate: float) -> optax.GradientTransformation:
  """Builds an optax optimiser.

  Raises:
    ValueError: for an unknown name or a learning rate that is not positive.
  """
  if name not in OPTIMIZERS:
    raise ValueError(
      f'unknown optimizer {name!r}; there are {sorted(OPTIMIZERS)}'
    )
  if not learning_rate > 0:
    raise ValueError(f'learning_rate must be positive, got {learning_rate}')
  return OPTIMIZERS[name](learning_rate)
