"""Optimisers whose learning rate is an argument of compiled programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
from jax.typing import ArrayLike

from lca.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation made anew for each learning rate.

  An optax transformation holds its learning rate as a constant. This class has
  the same two methods, and `dataclasses.replace` changes the rate, also to one
  that JAX traces. So runs that differ in the rate alone share their programs.

  Attributes:
    make: a function from a learning rate to an optax transformation.
    learning_rate: step size.
  """

  make: Callable[[ArrayLike], optax.GradientTransformation]
  learning_rate: ArrayLike

  def init(self, params: PyTree) -> optax.OptState:
    """Returns the state before the first step."""
    return self.make(self.learning_rate).init(params)

  def update(
    self, updates: PyTree, state: optax.OptState, params: PyTree | None = None
  ) -> tuple[PyTree, optax.OptState]:
    """Returns a step from gradients, and the next state."""
    return self.make(self.learning_rate).update(updates, state, params)


AnyOptimizer = optax.GradientTransformation | Optimizer


def numbers_of(optimizer: AnyOptimizer) -> dict[str, Any]:
  """Returns the learning rate by its name; {} if it is a constant."""
  if isinstance(optimizer, Optimizer):
    return {'learning_rate': optimizer.learning_rate}
  return {}


def with_numbers(
  optimizer: AnyOptimizer, numbers: dict[str, Any]
) -> AnyOptimizer:
  """Returns an optimiser with other values of `numbers_of`."""
  if isinstance(optimizer, Optimizer):
    return dataclasses.replace(optimizer, **numbers)
  return optimizer
