"""The PyTorch parts that several adapters share: model, local training, Krum.

They follow PyTorch's performance tuning guide: the memory format of images is
`channels_last`, and Adam is fused. `tuned=False` keeps PyTorch's defaults, as
most code in the field does. Threads stay as PyTorch sets them, one per core.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.systems.common import Task, Weights

_LAYERS = {'Conv_0': '0', 'Conv_1': '2', 'Dense_0': '6', 'Dense_1': '8'}
_SHAPES = {'Dense_0': (14, 14, 64)}  # what the first dense layer reads


class CNN(nn.Sequential):
  """The paper's CNN.

  Args:
    tuned: computes convolutions in the `channels_last` format.
  """

  def __init__(self, tuned: bool = True):
    super().__init__(
      nn.Conv2d(1, 32, 3, padding='same'),
      nn.ReLU(),
      nn.Conv2d(32, 64, 3, padding='same'),
      nn.ReLU(),
      nn.MaxPool2d(2),
      nn.Flatten(),
      nn.Linear(64 * 14 * 14, 128),
      nn.ReLU(),
      nn.Linear(128, 10),
    )
    if tuned:
      self.to(memory_format=torch.channels_last)


def model_of(weights: Weights, tuned: bool = True) -> CNN:
  """Returns the CNN with given weights.

  Args:
    weights: see `common`.
    tuned: see `CNN`.
  """
  model = CNN(tuned)
  state = {}
  for name, layer in _LAYERS.items():
    kernel = weights[f'{name}/kernel']
    if kernel.ndim == 4:
      kernel = kernel.transpose(3, 2, 0, 1)
    elif name in _SHAPES:
      height, width, channels = _SHAPES[name]
      kernel = kernel.reshape(height, width, channels, -1)
      kernel = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)
    else:
      kernel = kernel.T
    state[f'{layer}.weight'] = torch.from_numpy(np.ascontiguousarray(kernel))
    state[f'{layer}.bias'] = torch.from_numpy(weights[f'{name}/bias'])
  model.load_state_dict(state)
  return model


def weights_of(state: dict[str, torch.Tensor]) -> Weights:
  """Returns the weights in a state_dict of the CNN; see `common`."""
  arrays = {k: v.detach().contiguous().numpy() for k, v in state.items()}
  weights = {}
  for name, layer in _LAYERS.items():
    kernel = arrays[f'{layer}.weight']
    if kernel.ndim == 4:
      kernel = kernel.transpose(2, 3, 1, 0)
    elif name in _SHAPES:
      height, width, channels = _SHAPES[name]
      kernel = kernel.reshape(-1, channels, height, width)
      kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
    else:
      kernel = kernel.T
    weights[f'{name}/kernel'] = kernel
    weights[f'{name}/bias'] = arrays[f'{layer}.bias']
  return weights


def tensors(
  task: Task, tuned: bool = True
) -> list[tuple[torch.Tensor, torch.Tensor]]:
  """Returns the inputs `[examples, 1, 28, 28]` and labels of each client."""
  layout = torch.channels_last if tuned else torch.contiguous_format
  inputs = torch.from_numpy(task.inputs())[:, :, None]
  labels = torch.from_numpy(task.labels.astype(np.int64))
  return [
    (x.contiguous(memory_format=layout), y)
    for x, y in zip(inputs, labels, strict=True)
  ]


def train(
  model: nn.Module,
  inputs: torch.Tensor,
  labels: torch.Tensor,
  *,
  epochs: int,
  batch_size: int,
  learning_rate: float,
  tuned: bool = True,
) -> None:
  """Trains a client's model in place, with a new Adam.

  Args:
    model: the client's copy of the server's model.
    inputs: `[examples, 1, 28, 28]`.
    labels: `[examples]`.
    epochs: passes over the examples, each in a new random order.
    batch_size: examples in a batch.
    learning_rate: of Adam.
    tuned: Adam is fused.
  """
  optimizer = torch.optim.Adam(
    model.parameters(), learning_rate, fused=tuned or None
  )
  loss = nn.CrossEntropyLoss()
  for _ in range(epochs):
    for rows in torch.randperm(len(labels)).split(batch_size):
      optimizer.zero_grad()
      loss(model(inputs[rows]), labels[rows]).backward()
      optimizer.step()


def settings(task: Task) -> dict[str, float]:
  """Returns the arguments of `train` that a task decides."""
  names = ('epochs', 'batch_size', 'learning_rate')
  return {name: getattr(task, name) for name in names}


def krum(updates: Sequence[Iterable[torch.Tensor]], f: int) -> int:
  """Returns the index of the client that Krum selects.

  Args:
    updates: for each client, the tensors of its update.
    f: the number of Byzantine clients that Krum tolerates.
  """
  rows = torch.stack(
    [torch.cat([x.flatten() for x in update]) for update in updates]
  )
  squares = (rows * rows).sum(1)
  between = squares[:, None] + squares - 2 * (rows @ rows.T)
  between.fill_diagonal_(float('inf'))
  nearest = between.sort(dim=1).values[:, : len(rows) - f - 2]
  return int(nearest.sum(1).argmin())
