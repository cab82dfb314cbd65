"""The optimisers that configs name, for clients and for the server.

An optimiser is a function of a learning rate and options that returns an optax
transformation. `sgd`, `adam`, `adagrad`, `yogi` and `adadelta` are optax's own
functions. `fedadagrad`, `fedadam` and `fedyogi` are Algorithm 2 of Reddi et al.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lca.federated.optimizer import Optimizer
from lca.registry import Registry
from lca.typing import PyTree

OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry(
  'optimizer',
  [optax.adadelta, optax.adagrad, optax.adam, optax.sgd, optax.yogi],
)
"""The optimisers by name; the first argument of each is its learning rate."""


class Moments(NamedTuple):
  """The state of an optimiser of Reddi et al.: trees like the parameters.

  Attributes:
    m: exponential moving average of the aggregates.
    v: the second moment: a sum or average of the aggregates' squares.
  """

  m: PyTree
  v: PyTree


SecondMoment = Callable[[jax.Array, jax.Array], jax.Array]
"""`(v, squared) -> v`: adds the squares of a round's aggregate to the second
moment."""


@OPTIMIZERS.register
def fedadagrad(
  learning_rate: float,
  *,
  b1: float = 0.0,
  eps: float = 1e-3,
  initial_accumulator_value: float = 0.0,
) -> optax.GradientTransformation:
  r"""FedAdagrad: Algorithm 2 of Reddi et al. with a sum of squares.

  .. math::
      m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t \\
      v_t &= v_{t-1} + \Delta_t^2 \\
      x_{t+1} &= x_t + \eta \frac{m_t}{\sqrt{v_t} + \tau}

  where :math:`\Delta_t` is the aggregate of a round. There is no bias
  correction, and :math:`\tau` is added to the root, not under it.

  Algorithm 2 begins with any :math:`v_{-1} \geq \tau^2`, which the paper's
  analysis needs. The authors' own runs of FedAdagrad and FedYogi begin with 0,
  and so does the default here. `initial_accumulator_value=eps**2` is the
  smallest value that the text allows.

  Args:
    learning_rate: :math:`\eta`.
    b1: :math:`\beta_1`. At 0, as in the paper's experiments with FedAdagrad,
      :math:`m_t` is the aggregate itself.
    eps: :math:`\tau`.
    initial_accumulator_value: :math:`v_{-1}`.

  Returns:
    An optax transformation of minus the aggregate, as the server passes it.

  References:
    Reddi et al., Adaptive federated optimization, ICLR 2021.

  Examples:
    >>> optimizer = fedadagrad(0.01)
    >>> aggregate = jnp.array(0.01)
    >>> step, _ = optimizer.update(-aggregate, optimizer.init(jnp.zeros(())))
    >>> print(f'{step:.5f}')
    0.00909
  """
  return _adaptive(
    learning_rate,
    b1,
    eps,
    initial_accumulator_value,
    lambda v, squared: v + squared,
  )


@OPTIMIZERS.register
def fedadam(
  learning_rate: float,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-3,
  initial_accumulator_value: float = 0.0,
) -> optax.GradientTransformation:
  r"""FedAdam: Algorithm 2 of Reddi et al. with a mean of squares.

  .. math:: v_t = \beta_2 v_{t-1} + (1 - \beta_2) \Delta_t^2

  Everything else is as in `fedadagrad`. optax's `adam` corrects the bias of
  both averages. The paper's algorithm does not, so that its first steps are
  smaller.

  Args:
    learning_rate: :math:`\eta`.
    b1: :math:`\beta_1`.
    b2: :math:`\beta_2`.
    eps: :math:`\tau`.
    initial_accumulator_value: :math:`v_{-1}`.

  Returns:
    An optax transformation of minus the aggregate.

  References:
    Reddi et al., Adaptive federated optimization, ICLR 2021.
  """
  return _adaptive(
    learning_rate,
    b1,
    eps,
    initial_accumulator_value,
    lambda v, squared: b2 * v + (1 - b2) * squared,
  )


@OPTIMIZERS.register
def fedyogi(
  learning_rate: float,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-3,
  initial_accumulator_value: float = 0.0,
) -> optax.GradientTransformation:
  r"""FedYogi: Algorithm 2 of Reddi et al. with steps towards the squares.

  .. math::
      v_t = v_{t-1} - (1 - \beta_2) \Delta_t^2
            \operatorname{sign}(v_{t-1} - \Delta_t^2)

  Everything else is as in `fedadagrad`.

  Args:
    learning_rate: :math:`\eta`.
    b1: :math:`\beta_1`.
    b2: :math:`\beta_2`.
    eps: :math:`\tau`.
    initial_accumulator_value: :math:`v_{-1}`.

  Returns:
    An optax transformation of minus the aggregate.

  References:
    Reddi et al., Adaptive federated optimization, ICLR 2021.
  """
  return _adaptive(
    learning_rate,
    b1,
    eps,
    initial_accumulator_value,
    lambda v, squared: v - (1 - b2) * squared * jnp.sign(v - squared),
  )


def _adaptive(
  learning_rate: float,
  b1: float,
  tau: float,
  initial: float,
  second_moment: SecondMoment,
) -> optax.GradientTransformation:
  r"""Returns Algorithm 2 of Reddi et al. with any update of the second moment.

  Args:
    learning_rate: :math:`\eta`.
    b1: :math:`\beta_1`.
    tau: :math:`\tau`.
    initial: :math:`v_{-1}`.
    second_moment: returns :math:`v_t` from :math:`v_{t-1}` and the squares.
  """

  def init(params):
    return Moments(
      m=jax.tree.map(jnp.zeros_like, params),
      v=jax.tree.map(lambda x: jnp.full_like(x, initial), params),
    )

  def update(gradients, state, params=None):
    del params
    delta = jax.tree.map(jnp.negative, gradients)  # the aggregate
    m = jax.tree.map(lambda m, d: b1 * m + (1 - b1) * d, state.m, delta)
    v = jax.tree.map(lambda v, d: second_moment(v, d**2), state.v, delta)
    step = jax.tree.map(
      lambda m, v: learning_rate * m / (jnp.sqrt(v) + tau), m, v
    )
    return step, Moments(m, v)

  return optax.GradientTransformation(init, update)


def make(
  name: str, learning_rate: float, *, whose: str = '', **options: Any
) -> Optimizer:
  """Builds an optimiser by its name.

  Args:
    name: a key of `OPTIMIZERS`.
    learning_rate: step size, above 0.
    whose: for messages: the section of the config that the optimiser belongs
      to, such as `'client'`.
    **options: of the optimiser, such as Adadelta's `rho` and `eps`.

  Returns:
    The optimiser, which has the methods of an optax transformation.

  Raises:
    ValueError: an unknown name, or a learning rate that is not positive.
    TypeError: an option that the optimiser does not have.
  """
  OPTIMIZERS.check(name, {'learning_rate', *options})
  if not learning_rate > 0:
    key = f'{whose}.learning_rate' if whose else 'learning_rate'
    raise ValueError(f'{key} must be positive, got {learning_rate}')
  return Optimizer(
    functools.partial(OPTIMIZERS[name], **options), float(learning_rate)
  )
