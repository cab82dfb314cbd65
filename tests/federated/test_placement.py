"""Results depend on devices and chunks only by rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulations import CLASSIFIER, simulation

from lca.models import Classifier


@pytest.mark.parametrize(('devices', 'chunk_size'), [(4, 1), (2, 3)])
def test_devices_and_chunks_do_not_matter(data, devices, chunk_size):
  one = simulation(data)
  many = simulation(data, devices=devices, chunk_size=chunk_size)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    one.run_round(one.init(), 0)[0].variables,
    many.run_round(many.init(), 0)[0].variables,
  )


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 2e-3), (jnp.float64, 1e-8)]
)
def test_rounding_alone_grows_over_the_rounds(data, dtype, tolerance):
  """Compares one device with eight, of which one has no client to train."""

  class OfDtype(Classifier):
    """A classifier with parameters of a dtype."""

    def init(self, key, input_spec):
      variables = super().init(key, input_spec)
      return jax.tree.map(lambda x: x.astype(dtype), variables)

  classifier = OfDtype(CLASSIFIER.module, (8.0,), (8.0,))
  losses = []
  with jax.enable_x64(dtype == jnp.float64):
    for devices, chunk_size in ((1, 1), (8, 2)):
      sim = simulation(
        data, devices=devices, chunk_size=chunk_size, classifier=classifier
      )
      state = sim.init()
      for round_idx in range(5):
        state, _ = sim.run_round(state, round_idx)
      assert jax.tree.leaves(state.variables)[0].dtype == dtype
      losses.append(sim.evaluate(state)['test_loss'])
  np.testing.assert_allclose(*losses, rtol=tolerance)
