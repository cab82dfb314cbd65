"""`lca.stack`: from a list of the clients' trees to one tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca

VECTORS = [np.array([1.0, 2.0], np.float32) * i for i in range(3)]


class Tensor:
  """Stands in for a tensor of another framework, which NumPy can read."""

  def __init__(self, values):
    self.values = values

  def __array__(self, dtype=None, copy=None):
    return np.array(self.values, dtype)


class Capsule:
  """Stands in for a tensor that NumPy cannot read, such as one on a GPU."""

  def __init__(self, values):
    self.values = values

  def __dlpack__(self, **how):
    return self.values.__dlpack__(**how)

  def __dlpack_device__(self):
    return self.values.__dlpack_device__()


class Refusing(Capsule):
  """Stands in for a bfloat16 tensor, whose `__array__` raises."""

  def __array__(self, dtype=None, copy=None):
    raise TypeError('unsupported dtype')


@pytest.mark.parametrize(
  'kind', [np.asarray, jnp.asarray, np.float64, Tensor, Capsule, Refusing]
)
def test_vectors_of_any_framework(kind):
  stacked = lca.stack([kind(vector) for vector in VECTORS])
  assert isinstance(stacked, jax.Array)
  assert stacked.dtype == np.float32
  np.testing.assert_array_equal(stacked, np.stack(VECTORS))
  np.testing.assert_array_equal(lca.median(stacked), VECTORS[1])


def test_strided_tensors():
  matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
  stacked = lca.stack([Tensor(matrix.T), Tensor(matrix.T[:, ::-1])])
  np.testing.assert_array_equal(stacked[1], matrix.T[:, ::-1])


def test_trees():
  clients = [
    {'w': Tensor(v), 'b': [jnp.float32(i)]} for i, v in enumerate(VECTORS)
  ]
  stacked = lca.stack(clients)
  assert jax.tree.map(jnp.shape, stacked) == {'w': (3, 2), 'b': [(3,)]}
  np.testing.assert_array_equal(stacked['b'][0], [0, 1, 2])


def test_rows_of_an_array_and_a_generator():
  rows = np.stack(VECTORS)
  np.testing.assert_array_equal(lca.stack(rows), rows)
  np.testing.assert_array_equal(lca.stack(v for v in VECTORS), rows)


@pytest.mark.parametrize(
  ('clients', 'error', 'words'),
  [
    ([], ValueError, 'one client'),
    ({'w': VECTORS[0]}, TypeError, 'a list .*dict'),
    (3, TypeError, 'a list .*int'),
    ([{'w': VECTORS[0]}, {'v': VECTORS[0]}], ValueError, 'client 1 .*client 0'),
    (
      [{'w': {'k': VECTORS[0]}}, {'w': {'k': VECTORS[0][:1]}}],
      ValueError,
      r"client 1's leaf 'w/k' has shape \(1,\), client 0's \(2,\)",
    ),
    ([*VECTORS, VECTORS[0][:1]], ValueError, "client 3's update has shape"),
    ([VECTORS[0], 'two'], TypeError, "client 1's update is no array: str"),
    ([{'w': object()}], TypeError, "client 0's leaf 'w' is no array: object"),
  ],
)
def test_errors_name_the_client(clients, error, words):
  with pytest.raises(error, match=words):
    lca.stack(clients)


@pytest.mark.parametrize('kind', [Tensor, Capsule, str])
@pytest.mark.parametrize('rule', [lca.mean, lca.cge, lca.median, lca.medoid])
def test_rules_say_what_a_foreign_tensor_needs(rule, kind):
  with pytest.raises(TypeError, match=rf'{kind.__name__}.*lca\.stack'):
    rule({'w': kind(VECTORS[0])})
