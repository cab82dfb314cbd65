"""Writes `efficientnet.npz`: outputs of torchvision's and timm's networks.

    pip install torch==2.5.1 torchvision==0.20.1 timm
    cd tests && python -m golden.efficientnet

The weights and images are drawn by NumPy, so that tests can draw the same ones
without PyTorch. The file also holds checksums of both, and the versions of the
libraries that made it.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.npz')
PTH = FILE.with_name('tiny.pth')

# Shapes of images, `[batch, height, width, 3]`. Odd sides make the two kinds of
# padding differ most.
SHAPES = {
  'torchvision_b0': (2, 67, 50, 3),
  'torchvision_b0_training': (4, 64, 64, 3),
  'timm_lite0': (2, 67, 50, 3),
}


def images(case: str) -> np.ndarray:
  """Draws the images of a case, uniform in [-2, 2)."""
  rng = np.random.default_rng(zlib.crc32(case.encode()))
  return (4 * rng.random(SHAPES[case]) - 2).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Draws tensors of given shapes, each from a seed made of its name."""
  return {name: _tensor(name, shape) for name, shape in shapes.items()}


def _tensor(name, shape):
  draws = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
  signed = 2 * draws - 1  # uniform in [-1, 1), with variance 1 / 3
  if len(shape) > 1:
    signed *= np.sqrt(6 / np.prod(shape[1:]))
  elif name.endswith(('.weight', '.running_var')):
    signed = 1 + 0.3 * signed
  else:
    signed *= 0.3
  return signed.astype(np.float32)


def checksum(arrays: Mapping[str, np.ndarray]) -> float:
  """Returns the sum of absolute values over all arrays."""
  return sum(float(np.abs(a).sum(dtype=np.float64)) for a in arrays.values())


def main() -> None:
  import timm
  import torch
  import torchvision

  made = {
    'versions': json.dumps(
      {m.__name__: m.__version__ for m in (torch, torchvision, timm, np)}
    )
  }

  def shapes_of(case, network):
    shapes = {
      name: tuple(tensor.shape)
      for name, tensor in network.state_dict().items()
      if not name.endswith('num_batches_tracked')
    }
    made[f'{case}/shapes'] = json.dumps(shapes)
    return shapes

  def run(case, network, training=False):
    shapes = shapes_of(case, network)
    state = weights(shapes)
    tensors = {name: torch.from_numpy(a) for name, a in state.items()}
    network.load_state_dict(tensors, strict=False)
    network.train(training)
    x = torch.from_numpy(images(case).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
      logits = network(x).numpy()
    made[f'{case}/logits'] = logits[:, :100]
    made[f'{case}/weights'] = checksum(state)
    made[f'{case}/images'] = checksum({case: images(case)})
    return network.state_dict()

  b0 = torchvision.models.efficientnet_b0
  run('torchvision_b0', b0())
  still = b0(dropout=0.0, stochastic_depth_prob=0.0, num_classes=10)
  after = run('torchvision_b0_training', still, training=True)
  for name in ('features.0.1', 'features.4.1.block.1.1', 'features.8.1'):
    for statistic in ('running_mean', 'running_var'):
      key = f'{name}.{statistic}'
      made[f'torchvision_b0_training/{key}'] = after[key].numpy()
  shapes_of('timm_b0', timm.create_model('efficientnet_b0'))
  run('timm_lite0', timm.create_model('tf_efficientnet_lite0'))
  np.savez_compressed(FILE, **made)
  tiny = torch.nn.Sequential(
    torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2)
  )
  for i, tensor in enumerate(tiny.state_dict().values()):
    tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 10 * i)
  torch.save(tiny.state_dict(), PTH)


if __name__ == '__main__':
  main()
