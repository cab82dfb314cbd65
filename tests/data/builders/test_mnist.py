"""Tests of MNIST."""

import numpy as np
import published


def test_mnist(loads):
  mnist = loads('mnist')
  assert (mnist.name, mnist.num_classes) == ('mnist', 10)
  assert mnist.mean == mnist.std == (127.5,)
  for split, expected in (
    (mnist.train, published.grey(23, 0)),
    (mnist.test, published.grey(7, 1)),
  ):
    np.testing.assert_array_equal(split.inputs[..., 0], expected[0])
    np.testing.assert_array_equal(split.labels, expected[1])
    assert split.owners is None
