"""Rules of NumPy arrays as functions of stacked pytrees."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lca.stacked import sums
from lca.typing import Update, Updates


def from_numpy(function: Callable[..., Any]) -> Callable[..., Update]:
  """Makes a rule from a function of NumPy arrays, such as another system's.

  The rule can be used like those of this library: `lca.testing.check_rule`
  examines it, `lca.layerwise` and `lca.stateless` take it, and JAX programs
  call it back on the host, also under `jit` and `vmap`. It has no derivative.

  Args:
    function: `(rows, **options) -> update`, from a float32 or float64 array
      `[n, d]`, whose rows are the clients' updates, to an array `[d]`. The
      array may be changed.

  Returns:
    A rule `(updates, **options) -> update`. Updates in narrower dtypes are
    passed as float32.

  Examples:
    >>> import numpy as np
    >>> from lca import testing
    >>> rule = testing.from_numpy(lambda rows: np.median(rows, axis=0))
    >>> print(rule({'w': np.array([[1., 5.], [2., 3.], [9., 4.]])}))
    {'w': Array([2., 4.], dtype=float32)}
  """

  return NumpyRule(function)


class NumpyRule:
  """A rule of stacked pytrees made from a function of NumPy arrays.

  Attributes:
    on_host: True; JAX does not trace the function.
  """

  on_host = True

  def __init__(self, function: Callable[..., Any]):
    self._function = function
    self.__name__ = getattr(function, '__name__', None) or repr(function)
    with contextlib.suppress(TypeError, ValueError):  # it has no signature
      self.__signature__ = inspect.signature(function)

  def __call__(self, updates: Updates, **options: Any) -> Update:
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, updates))
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts == {()}:
      raise ValueError(
        'updates must be stacked, with one first axis for the clients, got '
        f'the shapes {[leaf.shape for leaf in leaves]}'
      )
    dtype = jnp.result_type(jnp.float32, *leaves)
    rows = jnp.concatenate(
      [sums.flat(leaf).astype(dtype) for leaf in leaves], axis=1
    )

    def on_host(rows):
      update = self._function(np.array(rows), **options)
      return np.asarray(update, dtype).reshape(rows.shape[1])

    if isinstance(rows, Tracer):
      shape = jax.ShapeDtypeStruct(rows.shape[1:], dtype)
      update = jax.pure_callback(on_host, shape, rows, vmap_method='sequential')
    else:
      update = jnp.asarray(on_host(rows))
    ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1]
    parts = [
      part.reshape(leaf.shape[1:]).astype(leaf.dtype)
      for part, leaf in zip(jnp.split(update, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
