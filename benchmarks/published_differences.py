"""Measures what some differences between published implementations change.

    python -m benchmarks.published_differences [--output FILE]

`docs/published-differences.md` names the implementations. What is measured runs
with this library alone, on the digits of scikit-learn and on random rows.
"""

import argparse
import pathlib
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lca
import lca.data
from lca import attacks
from lca.experiment import simulate
from lca.experiment.simulator import Result

ROUNDS, NUM_CLASSES = 100, 10


class MLP(nn.Module):
  """A hidden layer of 64 units."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return nn.Dense(NUM_CLASSES)(hidden)


def train(attack: attacks.Attack | None = None, **options) -> Result:
  """Trains 20 clients under the mean; 3 of 15 in a round attack."""
  if attack:
    options |= {'num_byzantine': 3, 'num_attackers': 4}
  return simulate(
    lca.data.load('digits'),
    MLP(),
    lca.mean,
    attack=attack,
    num_clients=20,
    clients_per_round=15,
    local_epochs=2,
    batch_size=16,
    eval={'every': ROUNDS},
    **{'num_rounds': ROUNDS} | options,
  )


def success_rates(model: Result, attack: attacks.Attack) -> tuple[float, float]:
  """Returns the success rate without and with examples of the target class."""
  test, on_test = model.dataset.test, attack.on_test
  assert on_test is not None
  images, targets, counted = on_test(
    jnp.asarray(test.inputs),
    jnp.asarray(test.labels),
    num_classes=NUM_CLASSES,
    input_range=model.dataset.input_range,
  )
  hits = model.predict(np.asarray(images)).argmax(1) == np.asarray(targets)
  return float(hits[np.asarray(counted)].mean()), float(hits.mean())


def gradient_masks(model: Result, ratio: float = 0.1) -> tuple[float, ...]:
  """Compares the masks of Neurotoxin by the smallest |g| and the smallest g.

  Args:
    model: g is the gradient of its loss on the training set.
    ratio: share of the coordinates that a mask keeps.

  Returns:
    The share of the second mask's coordinates that the first has, too, and the
    shares of the squared length of g that the first and the second keep.
  """
  data = model.dataset.train
  inputs, labels = jnp.asarray(data.inputs), jnp.asarray(data.labels)

  def loss(variables):
    logits = model.classifier.logits(variables, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  gradient = jax.grad(loss)(model.variables)
  g = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
  kept = int(ratio * g.size)
  least, lowest = np.argsort(np.abs(g))[:kept], np.argsort(g)[:kept]
  squares = g**2 / np.sum(g**2)
  common = len(np.intersect1d(least, lowest)) / kept
  return common, float(squares[least].sum()), float(squares[lowest].sum())


def distance(a: Result, b: Result) -> float:
  """Returns the norm of the difference of two models."""
  return float(
    optax.global_norm(jax.tree.map(jnp.subtract, a.variables, b.variables))
  )


def clip_factors(seed: int) -> tuple[float, float]:
  """Returns the length of FLAME's result, and with factors of other clients.

  The first 4 of 20 clients send long rows, and FLAME does not select them. The
  i-th selected client then gets the clip factor of client i.
  """
  rng = np.random.default_rng(seed)
  params = jnp.asarray(rng.normal(size=1000), jnp.float32)
  x = rng.normal(size=1000) + rng.normal(size=(20, 1000))
  x[:4] *= -10
  x = jnp.asarray(0.1 * x, jnp.float32)
  right, info = lca.explain(lca.flame)(x, params=params)
  selected = np.flatnonzero(info['selected'])
  norms = jnp.linalg.norm(x, axis=1)
  factors = jnp.minimum(1, jnp.median(norms) / norms)
  wrong = (factors[: len(selected), None] * x[selected]).mean(0)
  return float(jnp.linalg.norm(right)), float(jnp.linalg.norm(wrong))


def make_page() -> str:
  """Measures, and returns the tables."""
  clean = train()
  triggers = [attacks.badnets(target=t) for t in range(NUM_CLASSES)]
  before = np.mean([success_rates(clean, x) for x in triggers], axis=0)
  after = np.mean([success_rates(train(x), x) for x in triggers], axis=0)
  common, least, lowest = gradient_masks(clean)
  first, last = train(num_rounds=1), train(num_rounds=ROUNDS - 1)
  sizes = [float(optax.global_norm(x.variables)) for x in (first, clean)]
  steps = [distance(train(num_rounds=2), first), distance(clean, last)]
  lengths = np.mean([clip_factors(seed) for seed in range(20)], axis=0)
  accuracy = clean.history['test_accuracy'][-1]
  about = (
    'Written by `python -m benchmarks.published_differences` with lca '
    f'{lca.__version__} and jax {jax.__version__}. A network with a hidden '
    'layer of 64 units learns the digits from 15 of 20 clients a round, under '
    f'the mean, for {ROUNDS} rounds; its accuracy is then {accuracy:.3f}. '
    'Where clients attack, 3 of the 15 train `badnets`; rates are means over '
    'the ten targets.'
  )
  flame = (
    "FLAME's result on random rows of 20 clients, of whom the first 4 send ten "
    f'times as long ones, has the length {lengths[0]:.2f}. If the i-th '
    'selected client gets the clip factor of client i, its length is '
    f'{lengths[1] / lengths[0]:.2f} times that (means of 20 draws).'
  )
  return f"""# What some differences change

{textwrap.fill(about, 80)}

| attack success rate | target class left out | target class counted |
| --- | --- | --- |
| nobody attacks | {before[0]:.3f} | {before[1]:.3f} |
| `badnets` | {after[0]:.3f} | {after[1]:.3f} |

| a tenth of the coordinates, with | share of the gradient's squared length |
| --- | --- |
| the smallest absolute gradient | {least:.1e} |
| the smallest signed gradient | {lowest:.2f} |

The two tenths have {common:.1%} of their coordinates in common.

| round | norm of the model | CRFL's bound on MNIST | norm of the mean update |
| --- | --- | --- | --- |
| 1, 2 | {sizes[0]:.2f} | 2.1 | {steps[0]:.2f} |
| {ROUNDS} | {sizes[1]:.2f} | {min(15, 0.1 * ROUNDS + 2):.1f} | {steps[1]:.2f} |

{textwrap.fill(flame, 80)}
"""


def main() -> None:
  """Writes the tables to the terminal, and to a file if one is named."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', help='a file to write the tables to')
  args = parser.parse_args()
  page = make_page()
  print(page, end='')
  if args.output:
    pathlib.Path(args.output).write_text(page)


if __name__ == '__main__':
  main()
