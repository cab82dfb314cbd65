"""The rule that compares what the clients' models have learned to return."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.brought import Predictor
from lca.aggregators.rules.selection import average, check_integers
from lca.stacked import geometry, sharding, sums
from lca.stacked.hdbscan import hdbscan
from lca.stacked.trees import (
  check_one_update,
  group_leaves,
  grouping,
  layer_names,
)
from lca.typing import Update, Updates

_BATCH = 1024  # inputs that a model is given at once,
_NUMBERS = 2**22  # and numbers in them, at most


@FunctionRule
def deep_sight(
  updates: Updates,
  *,
  params: Update,
  predict: Predictor,
  key: jax.Array,
  num_inputs: int = 20_000,
  num_seeds: int = 3,
  min_cluster_size: int = 5,
  min_samples: int | None = None,
  allow_single_cluster: bool = False,
  accept_noise: bool = True,
  output_layer: str | None = None,
) -> tuple[Update, Info]:
  r"""DeepSight: averages clusters of clients whose data seem to be diverse.

  Clients that train on similar labels change the output layer in a similar way,
  and a backdoor's examples have few labels. Let :math:`\Delta W_i` and
  :math:`\Delta b_i` be the part of update i in the kernel and the bias of the
  output layer, and k a class. The rule takes

  1. the share of class k in the update's energy, the *NEUP*,

     .. math:: C_{ik} = \frac{E_{ik}^2}{\sum_j E_{ij}^2}, \qquad
         E_{ik} = |\Delta b_{ik}| + \sum_h |\Delta W_{ihk}|

     and the number of classes whose NEUP exceeds
     :math:`\max(0.01, 1 / K) \max_k C_{ik}` of K classes. Client i is
     *suspicious* if this number, the *threshold exceedings*, is at most half
     of its median over the clients;

  2. the division differences *DDif*: for `num_inputs` uniform random inputs x

     .. math:: D_{ik} = \mathrm{mean}_x \frac{p_k(w + x_i; x)}{p_k(w; x)}

     where p are the probabilities (softmax of the logits) and w the parameters
     that the clients started from; for each of `num_seeds` sets of inputs;

  3. clusters, with HDBSCAN (`lca.stacked.hdbscan`): of the cosine distances of
     the :math:`\Delta b_i`, of the Euclidean distances of the NEUPs, and of
     those of the DDifs for each set of inputs;

  4. distances: the share of these three clusterings, the one of the DDifs
     averaged over its sets, in which two clients have different labels. Noise
     is one label. HDBSCAN of these distances gives the final clusters.

  A cluster is accepted if less than a third of its clients are suspicious. A
  client that is noise is a cluster of its own. The accepted updates are clipped
  to the median norm S and averaged:

  .. math:: F(x_1, \dots, x_n) = \frac{1}{|A|} \sum_{i \in A}
      \min\Big(1, \frac{S}{\|x_i\|}\Big)\, x_i,
      \qquad S = \mathrm{med}_j \|x_j\|

  where the median runs over all clients.

  Fewer than 2 `min_cluster_size` clients form no clusters, unless a single one
  is allowed, and each is judged by itself. A rejected row (see `lca.geometry`)
  is in no cluster and in no median. If nobody is accepted, the update is NaN. A
  client without a change of the output layer has no exceedings, and is
  suspicious. A model whose outputs are not finite, or whose ratios overflow,
  is noise in the clusters of DDifs. Derivatives hold the weights constant.

  The cost of a call is that of n `num_seeds` `num_inputs` predictions; the
  models take turns, and the inputs come in batches.

  Promise (docs/rules.md): full, f < n/2, if any cluster is accepted.

  Args:
    updates: stacked pytree, leaves `[n, ...]`. One module has a kernel `[...,
      K]` and a bias `[K]`.
    params: w, one tree shaped like one update. A round of the simulator passes
      it, `predict` and the key.
    predict: the model as a function to logits (see `lca.Predictor`).
    key: PRNG key of the random inputs.
    num_inputs: number of random inputs in a set.
    num_seeds: number of sets.
    min_cluster_size: smallest number of clients in a cluster, for HDBSCAN.
    min_samples: as for `lca.stacked.hdbscan.hdbscan`; None takes
      `min_cluster_size`.
    allow_single_cluster: True if HDBSCAN may find that all clients are one
      cluster.
    accept_noise: False accepts no client that is noise.
    output_layer: name of the output layer's module, such as `'Dense_1'`. None
      takes the only module with a kernel `[..., K]` and a bias `[K]`.

  Returns:
    One update.

  Raises:
    ValueError: an option is out of its range; `params` is not shaped like one
      update; or there is no output layer of this name, none at all, or more
      than one.

  Examples:
    Eleven clients have learned all three classes, and the last one a single
    class:

    >>> import functools, jax, jax.numpy as jnp, lca
    >>> predict = lca.Predictor(
    ...   lambda params, x: x @ params['kernel'] + params['bias'],
    ...   jax.ShapeDtypeStruct((2,), jnp.float32))
    >>> one = {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
    >>> last = jax.tree.map(lambda x: x.at[..., 1:].set(0.), one)
    >>> updates = lca.stack([one] * 11 + [last])
    >>> rule = functools.partial(
    ...   lca.explain(lca.deep_sight), num_inputs=100, num_seeds=1)
    >>> update, info = jax.jit(rule)(
    ...   updates, params=last, predict=predict, key=jax.random.key(0))
    >>> print(info['selected'].astype(int))
    [1 1 1 1 1 1 1 1 1 1 1 0]

  References:
    Rieger et al., DeepSight: mitigating backdoor attacks in federated learning
    through deep model inspection, NDSS 2022.
  """
  check_integers('deep_sight', num_inputs=num_inputs, num_seeds=num_seeds)
  samples = min_cluster_size if min_samples is None else min_samples
  check_integers(
    'deep_sight', min_cluster_size=min_cluster_size, min_samples=samples
  )
  if min(num_inputs, num_seeds, samples) < 1 or min_cluster_size < 2:
    raise ValueError(
      'deep_sight needs num_inputs >= 1, num_seeds >= 1, min_cluster_size >= 2 '
      f'and min_samples >= 1, got num_inputs={num_inputs}, '
      f'num_seeds={num_seeds}, min_cluster_size={min_cluster_size}, '
      f'min_samples={min_samples}'
    )
  geometry.num_clients(updates)
  check_one_update('params', params, updates)
  rows, params = lax.stop_gradient((updates, params))
  gram = geometry.norms_gram(rows)
  rejected = geometry.rejected_rows(gram)
  cluster = functools.partial(
    hdbscan,
    min_cluster_size=min_cluster_size,
    min_samples=min_samples,
    allow_single_cluster=allow_single_cluster,
  )

  # 1. Energies of the output layer, and threshold exceedings.
  kernel, bias = output_changes(rows, params, predict, output_layer)
  shares, exceedings = energy_shares(kernel, bias)
  median = jnp.nanmedian(jnp.where(rejected, jnp.nan, exceedings))
  suspicious = exceedings <= median / 2

  # 2. Division differences, [num_seeds, n, K].
  measure = functools.partial(
    division_differences, rows, params, predict, num_inputs
  )
  ratios = lax.map(measure, jax.random.split(key, num_seeds))

  # 3. Clusters by angle, by energy, and by the ratios of each seed.
  angles = geometry.distances(geometry.gram(bias), 'cosine')
  features = jnp.concatenate([shares[None], ratios])
  gaps = features[:, :, None] - features[:, None]
  lengths = jnp.sqrt(jnp.sum(gaps**2, axis=-1))
  unknown = jnp.any(~jnp.isfinite(features), axis=-1)
  labels = jax.vmap(cluster)(
    jnp.concatenate([angles[None], lengths]),
    rejected | jnp.concatenate([rejected[None], unknown]),
  )

  # 4. The ensemble. Counts are whole numbers, so that ties are exact.
  differ = labels[:, :, None] != labels[:, None]
  of_each = jnp.array([num_seeds, num_seeds] + [1] * num_seeds)
  counts = jnp.tensordot(of_each, differ.astype(of_each.dtype), axes=1)
  final = cluster(counts / (3 * num_seeds), rejected)

  # 5. Accepted clusters. A client that is noise is alone.
  alone = jnp.eye(len(final), dtype=bool)
  fellows = jnp.where(final >= 0, final == final[:, None], alone)
  doubtful = jnp.sum(fellows & suspicious, axis=1)
  accepted = 3 * doubtful < jnp.sum(fellows, axis=1)
  if not accept_noise:
    accepted &= final >= 0

  verdict = average(gram, accepted)
  factors = geometry.clip_factors(gram, rejected=rejected)
  verdict = verdict._replace(factors=factors)
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)


def output_changes(
  updates: Updates,
  params: Update,
  predict: Predictor,
  output_layer: str | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the output layer's part of the updates: kernel and bias.

  Args:
    updates, params, predict, output_layer: see `deep_sight`.

  Returns:
    `[n, ..., K]` and `[n, K]`.

  Raises:
    ValueError: the output layer is not known.
  """
  spec = predict.input_spec
  batch = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)
  classes = jax.eval_shape(predict, params, batch).shape[-1]
  leaves, found = jax.tree.leaves(updates), {}
  modules = group_leaves(updates, grouping('module')).values()
  for name, module in zip(layer_names(updates, 'module'), modules, strict=True):
    shapes = {i: jnp.shape(leaves[i])[1:] for i in module}
    kernels = [i for i, s in shapes.items() if len(s) > 1 and s[-1] == classes]
    biases = [i for i, s in shapes.items() if s == (classes,)]
    if len(kernels) == len(biases) == 1:
      found[name] = leaves[kernels[0]], leaves[biases[0]]
  named = [name for name in found if output_layer in (None, name)]
  if len(named) != 1:
    raise ValueError(
      'deep_sight needs one output layer, a module with a kernel [..., '
      f'{classes}] and a bias [{classes}], for the {classes} outputs of '
      f'predict: the updates have {sorted(found)}, and output_layer is '
      f'{output_layer!r}'
    )
  return found[named[0]]


def energy_shares(
  kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the NEUPs `[n, K]` and the numbers of threshold exceedings `[n]`.

  Args:
    kernel: `[n, ..., K]`, changes of the output layer's kernel.
    bias: `[n, K]`, those of its bias.
  """
  kernel, bias = (jnp.abs(x.astype(sums.wide(x.dtype))) for x in (kernel, bias))
  energy = bias + jnp.sum(kernel, axis=range(1, kernel.ndim - 1))
  energy = sharding.whole_on_each_device(energy)
  largest = jnp.max(energy, axis=1, keepdims=True)
  # In units of the largest one, so that squares do not overflow.
  squares = (energy / jnp.where(largest > 0, largest, 1)) ** 2
  total = jnp.sum(squares, axis=1, keepdims=True)
  exceedings = jnp.sum(squares > max(0.01, 1 / bias.shape[1]), axis=1)
  return squares / jnp.where(total > 0, total, 1), exceedings


def division_differences(
  updates: Updates,
  params: Update,
  predict: Predictor,
  num_inputs: int,
  key: jax.Array,
) -> jax.Array:
  """Returns the DDifs for one set of random inputs, `[n, K]`.

  The models are made one at a time, and the inputs for one batch at a time.
  Each device evaluates the models on its share of a batch.

  Args:
    updates, params, predict, num_inputs: see `deep_sight`.
    key: PRNG key of the inputs.
  """
  numbers = max(1, math.prod(predict.input_spec.shape))
  width = max(1, min(num_inputs, _BATCH, _NUMBERS // numbers))

  def of_batch(i):
    inputs = predict.random_inputs(jax.random.fold_in(key, i), width)
    inputs = sharding.by_row(inputs)
    counts = i * width + jnp.arange(width) < num_inputs

    def log_probabilities(model):
      model = jax.tree.map(sharding.whole_on_each_device, model)
      logits = predict(model, inputs)
      return jax.nn.log_softmax(logits.astype(sums.wide(logits.dtype)))

    before = log_probabilities(params)

    def ratios(row):
      model = jax.tree.map(lambda w, x: (w + x).astype(w.dtype), params, row)
      ratio = jnp.exp(log_probabilities(model) - before)
      return jnp.sum(jnp.where(counts[:, None], ratio, 0), axis=0)

    return lax.map(ratios, updates)

  batches = -(-num_inputs // width)  # rounded up
  return jnp.sum(lax.map(of_batch, jnp.arange(batches)), axis=0) / num_inputs
