"""A client's part of a round, made from the section `client` of a config."""

import dataclasses

from lca import models
from lca.attacks import Attack
from lca.experiment import optimizers
from lca.experiment.client_sections import Gradient, Training
from lca.federated import clients
from lca.federated.clients import LocalGradient, LocalTraining


def honest(
  client: Training | Gradient,
  classifier: models.Classifier,
  microbatch_size: int | None,
) -> LocalGradient:
  """Returns a client's part of a round in the mode of its section."""
  shared = {
    'losses': classifier.losses,
    'batch_size': client.batch_size,
    'microbatch_size': microbatch_size,
    'update_dtype': client.update_dtype,
  }
  if isinstance(client, Gradient):
    return LocalGradient(**shared)
  return clients.LocalTraining(
    **shared,
    optimizer=optimizers.make(
      client.optimizer, client.learning_rate, whose='client'
    ),
    local_epochs=client.local_epochs,
  )


def of_attackers(
  client: Training | Gradient, part: LocalGradient, attack: Attack
) -> LocalTraining | None:
  """Returns an attacker's part of a round; None if it is that of all clients.

  Args:
    client: the section.
    part: an honest client's part of a round.
    attack: what the Byzantine clients do.

  Raises:
    ValueError: the attackers train in their own way, but clients send
      gradients; or they poison no example of a batch.
  """
  own = attack.training
  if own is None:
    return None
  if not isinstance(client, Training) or not isinstance(
    part, clients.LocalTraining
  ):
    raise ValueError(
      'an attack whose clients train in their own way (attack.training, a3fl) '
      f"needs client.mode='training': with client.mode={client.mode!r} clients "
      'send one gradient and take no steps'
    )
  batch_size = own.batch_size or client.batch_size
  if own.batch_share is not None and not round(own.batch_share * batch_size):
    raise ValueError(
      f'attack.training.batch_share={own.batch_share} of a batch of '
      f'{batch_size} is no example: raise it, or attack.training.batch_size'
    )
  return dataclasses.replace(
    part,
    batch_size=batch_size,
    local_epochs=own.local_epochs or client.local_epochs,
    optimizer=optimizers.make(
      own.optimizer or client.optimizer,
      own.learning_rate or client.learning_rate,
      whose='attack.training',
    ),
  )
