"""Where a search for the worst case begins: at all attacks that are known."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lca import attacks
from lca.stacked import sums
from lca.typing import Updates

_FAR = (10.0, 1e3, 1e6)  # in units of `unit_length`
_SHORT = (1e-3, 0.1, 0.5, 2.0)  # shares of the honest mean
_PLACES = (-0.5, 0.5, 1.0, 2.0, 100.0)  # of Byzantine rows, on a line


def known_attacks(num_honest: int) -> dict[str, Callable[..., Updates]]:
  """Returns attacks on the updates, by a name that tells their options.

  Args:
    num_honest: number of honest rows, each of which can be mimicked.
  """
  found: dict[str, Callable[..., Updates]] = {
    f'alie(z={z:g})': functools.partial(attacks.alie, z=z)
    for z in (-3.0, -1.0, 0.3, 0.6, 1.0, 1.5, 3.0)
  }
  for epsilon in (0.0, 0.1, 0.5, 1.0, 10.0):
    found[f'fall_of_empires(epsilon={epsilon:g})'] = functools.partial(
      attacks.fall_of_empires, epsilon=epsilon
    )
  for scale in (1.0, 10.0):
    found[f'sign_flip(scale={scale:g})'] = functools.partial(
      attacks.sign_flip, scale=scale
    )
  for attack in (attacks.min_max, attacks.min_sum):
    for direction in ('unit', 'std', 'sign'):
      name = f'{attack.__name__}(direction={direction})'
      found[name] = functools.partial(attack, direction=direction)
  for b in (2.0, 10.0):
    found[f'fang_trimmed_mean(b={b:g})'] = functools.partial(
      attacks.fang_trimmed_mean, b=b
    )
  for target in range(num_honest):
    found[f'mimic(target={target})'] = functools.partial(
      attacks.mimic, target=target
    )
  return found


@functools.partial(jax.jit, static_argnums=(1, 3))
def starts(
  updates: Updates, num_honest: int, key: jax.Array, multiple_of: int
) -> dict[str, jax.Array]:
  """Returns what known attacks send, and rows far away or random, by name.

  Args:
    updates: stacked pytree, leaves `[n, ...]` of floats. The honest rows come
      first; the Byzantine rows are what these clients would send if they were
      honest.
    num_honest: number of honest rows.
    key: PRNG key.
    multiple_of: random rows are added until the number of starts is a multiple
      of this number.

  Returns:
    Matrices of all rows, `[n, d]`. The honest rows are unchanged.
  """
  rows = flat(updates)
  n = len(rows)
  byzantine = jnp.arange(n) >= num_honest
  mean, _ = centre(rows, num_honest)
  unit = unit_length(rows, num_honest)
  found = {
    name: attack(rows, byzantine=byzantine, key=key)
    for name, attack in known_attacks(num_honest).items()
  }

  def add(name, rows_of_attackers):
    found[name] = attacks.replace(rows, byzantine, rows_of_attackers)

  for share in _SHORT:
    add(f'mean times {share:g}', share * mean)
  normal = jax.random.normal(key, rows.shape, rows.dtype)
  apart = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
  alternating = 1 - 2 * (jnp.arange(n) % 2)
  for length in _FAR:
    away = length * unit
    add(f'far together ({length:g})', mean + away * apart[0])
    add(
      f'far on two sides ({length:g})',
      mean + away * alternating[:, None] * apart[0],
    )
    add(f'far apart ({length:g})', mean + away * apart)
  share = 1.0
  while len(found) % multiple_of:
    add(f'apart ({share:g})', mean + share * unit * apart)
    share /= 2
  return found


@functools.partial(jax.jit, static_argnums=(1, 3))
def two_points(
  updates: Updates, num_honest: int, key: jax.Array, multiple_of: int
) -> dict[str, jax.Array]:
  """Returns rows of which some honest ones are at one point, others at zero.

  The worst cases of coordinate-wise rules are of this kind. The points are on a
  line, and the Byzantine rows at several places of it. The arguments and the
  result are as those of `starts`, but the honest rows change, too.
  """
  rows = flat(updates)
  line = jax.random.normal(key, rows.shape[1:], rows.dtype)
  line = unit_length(rows, num_honest) * line / jnp.linalg.norm(line)
  positions, found = jnp.arange(len(rows)), {}

  def add(num, place):
    at = jnp.where(positions < num, 1.0, 0.0)
    at = jnp.where(positions < num_honest, at, place)
    name = f'{num} honest at 1, Byzantine at {place:g}'
    found[name] = at[:, None] * line

  for num in range(1, num_honest):
    for place in _PLACES:
      add(num, place)
  place = _PLACES[-1]
  while len(found) % multiple_of:
    place *= 2
    add(1, place)
  return found


def flat(updates: Updates) -> jax.Array:
  """Returns stacked updates as a matrix, `[n, d]`, in float32 or wider."""
  leaves = jax.tree.leaves(updates)
  dtype = functools.reduce(
    jnp.promote_types, (sums.wide(leaf.dtype) for leaf in leaves)
  )
  return jnp.concatenate(
    [sums.flat(leaf).astype(dtype) for leaf in leaves], axis=1
  )


def centre(rows: jax.Array, num_honest: int) -> tuple[jax.Array, jax.Array]:
  """Returns the mean of the first rows, and their spread about it.

  The spread is the root of their mean squared distance from the mean.

  Args:
    rows: `[n, d]`.
    num_honest: number of rows that count.
  """
  mean = jnp.mean(rows[:num_honest], axis=0)
  variance = jnp.sum((rows[:num_honest] - mean) ** 2) / num_honest
  # The derivative of a root is infinite at 0, and 0 times infinity is NaN.
  spread = jnp.sqrt(jnp.where(variance > 0, variance, 1))
  return mean, jnp.where(variance > 0, spread, 0)


def unit_length(rows: jax.Array, num_honest: int) -> jax.Array:
  """Returns the spread, or the norm of the mean if it is 0, or else 1.

  Args:
    rows: `[n, d]`.
    num_honest: number of rows that count.
  """
  mean, spread = centre(rows, num_honest)
  norm = jnp.linalg.norm(mean)
  return jnp.where(spread > 0, spread, jnp.where(norm > 0, norm, 1))
