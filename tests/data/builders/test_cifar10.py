"""Tests of CIFAR-10."""

import numpy as np
import published

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def test_cifar10(loads):
  cifar10 = loads('cifar10')
  assert (cifar10.name, cifar10.num_classes) == ('cifar10', 10)
  np.testing.assert_allclose(cifar10.mean, 255 * np.array(IMAGENET_MEAN))
  np.testing.assert_allclose(cifar10.std, 255 * np.array(IMAGENET_STD))
  *train, test = published.cifar10_batches().values()
  for split, records in (
    (cifar10.train, np.concatenate(train)),
    (cifar10.test, test),
  ):
    assert split.inputs.shape == (len(records), 32, 32, 3)
    np.testing.assert_array_equal(split.labels, records[:, 0])
    for channel in range(3):
      for row in (0, 1, 31):
        start = 1 + 1024 * channel + 32 * row
        np.testing.assert_array_equal(
          split.inputs[:, row, :, channel], records[:, start : start + 32]
        )
