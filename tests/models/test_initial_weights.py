"""Tests of the CNN's initial weights, and of users' models by name."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from lca import models
from lca.models import CNN
from lca.registry import Registry

IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 16), 'float32')

# The fan-in of a convolution is 3 * 3 * input channels. The fan-in of a dense
# layer is its input width.
FAN_IN = {
  'Conv_0': 9 * 16,
  'Conv_1': 9 * 64,
  'Dense_0': 4 * 4 * 64,
  'Dense_1': 256,
}


@functools.cache
def drawn(initial_weights):
  module = CNN(
    100, features=(64, 64), hidden=(256,), initial_weights=initial_weights
  )
  x = np.zeros(IMAGE.shape, IMAGE.dtype)
  params = jax.jit(module.init)(jax.random.key(3), x)['params']
  assert params.keys() == FAN_IN.keys()
  return jax.tree.map(np.asarray, params)


@pytest.mark.parametrize('layer', FAN_IN)
def test_pytorchs_are_uniform_within_the_root_of_the_fan_in(layer):
  # torch.nn.Conv2d and Linear: kaiming_uniform_(weight, a=sqrt(5)), so
  # bound = gain * sqrt(3 / fan_in) with gain = sqrt(2 / (1 + a^2)) = sqrt(1/3);
  # biases are uniform in 1 / sqrt(fan_in), which is the same.
  bound = np.sqrt(2 / (1 + np.sqrt(5) ** 2)) * np.sqrt(3 / FAN_IN[layer])
  assert bound == pytest.approx(1 / np.sqrt(FAN_IN[layer]))
  for x in drawn('torch')[layer].values():
    x = x.ravel()
    assert np.abs(x).max() <= bound
    # The largest of k entries is below (1 - c / k) bound with the probability
    # exp(-c).
    assert np.abs(x).max() > (1 - 12 / x.size) * bound
    # Over k uniform entries, the mean has a standard deviation of
    # bound / sqrt(3 k), and the mean square one of bound^2 sqrt(4 / 45 / k).
    assert abs(x.mean()) < 5 * bound / np.sqrt(3 * x.size)
    tolerance = 5 * bound**2 * np.sqrt(4 / 45 / x.size)
    assert abs(np.mean(x**2) - bound**2 / 3) < tolerance


@pytest.mark.parametrize('layer', FAN_IN)
def test_flaxs_are_normal_and_cut_off_and_biases_zero(layer):
  kernel, bias = (drawn('lecun_normal')[layer][k] for k in ('kernel', 'bias'))
  assert not bias.any()
  variance = 1 / FAN_IN[layer]
  # The distribution is truncated at two standard deviations. Truncation reduces
  # the standard deviation of a standard normal to 0.87962566, and the normal
  # before the truncation is wider by this factor.
  assert np.abs(kernel).max() <= 2 * np.sqrt(variance) / 0.8796256 * (1 + 1e-6)
  assert np.mean(kernel**2) == pytest.approx(variance, rel=0.05)


def test_the_default_is_flaxs():
  x = np.zeros(IMAGE.shape, IMAGE.dtype)
  small = {'features': (4,), 'hidden': ()}
  default = CNN(3, **small).init(jax.random.key(0), x)
  named = CNN(3, initial_weights='lecun_normal', **small)
  jax.tree.map(
    np.testing.assert_array_equal, default, named.init(jax.random.key(0), x)
  )
  with pytest.raises(ValueError, match=r"model\.initial_weights .*'kaiming'"):
    CNN(3, initial_weights='kaiming')


# By name.


@pytest.fixture
def registry(monkeypatch):
  own = Registry('model', brought=models.MODELS.brought)
  own.update(models.MODELS)
  monkeypatch.setattr(models, 'MODELS', own)
  return own


def test_a_model_of_ones_own_is_made_by_name(registry):
  @functools.partial(registry.register, name='mlp')
  class MLP(nn.Module):
    num_classes: int
    hidden: int = 32

    @nn.compact
    def __call__(self, x):
      return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.hidden)(x)))

  assert registry.options('mlp') == {'hidden': 32}
  assert models.make({'name': 'mlp', 'hidden': 8}, 5) == MLP(5, hidden=8)
  with pytest.raises(TypeError, match="model 'mlp' takes no hiden; did you"):
    models.make({'name': 'mlp', 'hiden': 8}, 5)
  with pytest.raises(ValueError, match="unknown model 'mpl'; did you mean"):
    models.make({'name': 'mpl'}, 5)


def test_functions_and_modules_without_a_number_of_classes(registry):
  registry.register(
    lambda num_classes, width=3: nn.Dense(num_classes), name='f'
  )
  assert models.make({'name': 'f', 'width': 4}, 5) == nn.Dense(5)
  registry.register(lambda: nn.Dense(7), name='seven')
  assert models.make({'name': 'seven'}, 5) == nn.Dense(7)
