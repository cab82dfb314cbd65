"""The optimisers that configs name, for clients and for the server."""

import inspect
from typing import Any

import optax

OPTIMIZERS = {
  'adadelta': optax.adadelta,
  'adagrad': optax.adagrad,
  'adam': optax.adam,
  'sgd': optax.sgd,
  'yogi': optax.yogi,
}


def make(
  name: str, learning_rate: float, **options: Any
) -> optax.GradientTransformation:
  """Builds an optax optimiser.

  Args:
    name: a key of `OPTIMIZERS`.
    learning_rate: its step size.
    **options: of optax's function, such as Adadelta's `rho` and `eps`.

  Raises:
    ValueError: for an unknown name or a learning rate that is not positive.
    TypeError: an option that the optimiser does not have.
  """
  if name not in OPTIMIZERS:
    raise ValueError(
      f'unknown optimizer {name!r}; there are {sorted(OPTIMIZERS)}'
    )
  if not learning_rate > 0:
    raise ValueError(f'learning_rate must be positive, got {learning_rate}')
  function = OPTIMIZERS[name]
  if unknown := sorted(
    set(options) - set(inspect.signature(function).parameters)
  ):
    raise TypeError(f'the optimizer {name} takes no {unknown}')
  return function(learning_rate, **options)
