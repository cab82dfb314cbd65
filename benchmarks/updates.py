"""Checks two claims of the layerwise cosine paper on updates of real rounds.

    python -m benchmarks.updates --output=updates.json

The rounds are those of the reduced Fashion-MNIST of `configs/tables.py` under
layerwise cosine Krum, without an attack and under model replacement. Two things
are measured in every round, for the whole model and for each layer:

- Does the median of all clients' norms, to which the cosine rules clip, lie
  between the smallest and the largest norm of an honest client?
- How large is the spread of the honest updates, `sqrt(E |G - g|^2) / |g|` with
  g their mean? Times eta(n, f) the spread is the sine of Krum's angle
  (Blanchard et al. 2017). The paper says that the angle is smaller by layer, so
  the largest spread of a layer is compared with that of the whole model.
"""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

import lca
from benchmarks import record
from configs import tables
from lca.aggregators import AGGREGATORS, layer_names
from lca.experiment import host, train
from lca.federated.population import population_from

_ROUNDS = flags.DEFINE_integer(
  'rounds', 30, 'Rounds of each setting.', lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)

F = 1  # Byzantine clients that Krum tolerates
WHOLE = 'whole model'


def krum_with_grams(n: int) -> lca.Aggregator:
  """Returns layerwise cosine Krum with the Gram matrices as its state.

  The state is that of the last round, `[layers, n, n]`.

  Args:
    n: clients in a round.
  """
  rule = lca.layerwise(lca.cosine(lca.krum))

  def init(params):
    return jnp.zeros((len(jax.tree.leaves(params)), n, n))

  def update(updates, state, **brought):
    del state, brought
    grams = [lca.gram(x) for x in jax.tree.leaves(updates)]
    return rule(updates, f=F), jnp.stack(grams)

  return lca.Aggregator(init, update)


AGGREGATORS[krum_with_grams.__name__] = krum_with_grams


def rounds_of(config: ConfigDict, num_rounds: int):
  """Yields the Gram matrices of the updates that are sent in each round.

  Args:
    config: a run's config; the run's aggregator is replaced.
    num_rounds: number of rounds to run.

  Yields:
    The Gram matrices `[n, n]` by layer, with that of the whole model under the
    name `WHOLE`, and the Byzantine mask `[n]`.
  """
  config = config.copy_and_resolve_references().unlock()
  n = config.server.clients_per_round
  config.aggregator = {'name': krum_with_grams.__name__, 'n': n}
  with tempfile.TemporaryDirectory() as workdir:
    simulation = train.set_up(config, workdir).simulation
  population = population_from(
    config.server, config.attack, config.data.num_clients
  )
  state = simulation.init()
  for i in range(num_rounds):
    state, _ = simulation.run_round(state, i)
    _, byzantine = population.sample(config.seed, i)
    grams = np.asarray(state.aggregator, np.float64)
    by_layer = dict(zip(layer_names(state.variables), grams, strict=True))
    yield by_layer | {WHOLE: grams.sum(0)}, byzantine


def norms_and_spread(
  gram: np.ndarray, byzantine: np.ndarray
) -> dict[str, float]:
  """Returns the norms and the spread that the module describes.

  Args:
    gram: inner products of the updates, `[n, n]`.
    byzantine: mask `[n]`.
  """
  norms, honest = np.sqrt(np.diagonal(gram)), ~byzantine
  products = gram[np.ix_(honest, honest)]
  # With g the mean of the honest updates, the mean of all inner products is
  # |g|^2, and the trace is the sum of their |G|^2.
  square = products.mean()
  count = len(products)
  variance = (np.trace(products) - count * square) / (count - 1)
  return {
    'median norm': float(np.median(norms)),
    'least honest': float(norms[honest].min()),
    'largest honest': float(norms[honest].max()),
    'spread': float(np.sqrt(variance / square)),
  }


def eta(n: int, f: int) -> float:
  """Returns Krum's eta(n, f) (Blanchard et al. 2017, proposition 1)."""
  inner = (f * (n - f - 2) + f**2 * (n - f - 1)) / (n - 2 * f - 2)
  return float(np.sqrt(2 * (n - f + inner)))


def conclusions(rounds: list[dict[str, dict[str, float]]]) -> list[str]:
  """Returns lines for a person to read.

  Args:
    rounds: for each round, `norms_and_spread` by layer.
  """
  cases = [numbers for layers in rounds for numbers in layers.values()]
  among = sum(
    x['least honest'] <= x['median norm'] <= x['largest honest'] for x in cases
  )
  whole = np.array([layers[WHOLE]['spread'] for layers in rounds])
  largest = np.array(
    [
      max(x['spread'] for name, x in layers.items() if name != WHOLE)
      for layers in rounds
    ]
  )
  return [
    f'the median norm lies among the honest in {among} of {len(cases)}',
    f'spread, median of the rounds: {np.median(whole):.2f} of the whole model,'
    f' {np.median(largest):.2f} of the layer with the largest',
    f"which is larger than the whole model's in {np.sum(largest > whole)} of "
    f'{len(rounds)} rounds',
  ]


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  host.use_all_cores()
  runs, results = tables.get_runs('reduced'), {}
  for attack in tables.ATTACKS:
    config = runs[f'reduced/beyond_{attack}/fashion_mnist/fedavg']
    results[attack] = [
      {name: norms_and_spread(gram, byzantine) for name, gram in grams.items()}
      for grams, byzantine in rounds_of(config, _ROUNDS.value)
    ]
    print(attack, *conclusions(results[attack]), sep='\n  ')
  n = config.server.clients_per_round
  print(f'eta({n}, {F}) = {eta(n, F):.2f}')
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=False),
      'rounds': results,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(about, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
