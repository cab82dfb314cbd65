"""Central differential privacy: epsilon, from the noise and the sampling.

    python -m lca.privacy --noise-multiplier=1 --clients-per-round=100 \
      --num-clients=10000 --num-rounds=1000

prints the epsilon of a training with DP-FedAvg (McMahan et al. 2018), such as
that of `lca.adaptive_clip` or of `lca.noisy` after a clip and the mean. The
accountant is Google's dp-accounting (`pip install 'lca[privacy]'`).
"""

import argparse
import inspect
from typing import Any, Literal

from lca.options import number, one_of, positive, whole

Sampling = Literal['fixed', 'poisson']


def epsilon(
  *,
  noise_multiplier: float,
  clients_per_round: int,
  num_clients: int,
  num_rounds: int,
  delta: float = 1e-5,
  sampling: Sampling = 'fixed',
) -> float:
  r"""Returns the :math:`\varepsilon` of :math:`(\varepsilon, \delta)`-privacy.

  In every round, clients are sampled from a population, their updates are
  clipped to the norm C and summed, and noise of deviation z C is added to the
  sum, or of z C / n to the mean. Whoever sees all models of the training learns
  little about a single client: any event is at most :math:`e^\varepsilon` times
  as probable with other data of this client, up to :math:`\delta`.

  The result depends on how clients are sampled, and on what "other data" means:

  - `'fixed'`: every round draws exactly n of the clients without replacement,
    as the simulator does. The data of one client are *replaced* by any others.
    The sum then changes by up to 2 C, so that the noise counts half.
  - `'poisson'`: every client takes part with probability n / num_clients, on
    its own. One client is *added or removed*, which changes the sum by up to C.
    The mean must be divided by the expected number n. Many papers state this
    epsilon and then draw a fixed number of clients, to which it does not apply.

  The noise has to come from a generator that nobody can predict, and nothing
  else that depends on the clients may be published. A simulation with a known
  seed protects nobody: the result is that of a real training with these
  numbers.

  Args:
    noise_multiplier: z, above 0.
    clients_per_round: n, or its expected value with `'poisson'`.
    num_clients: clients in the population.
    num_rounds: rounds of the training.
    delta: :math:`\delta`, in (0, 1); less than one over the number of clients
      is customary.
    sampling: `'fixed'` or `'poisson'`.

  Raises:
    ImportError: dp-accounting is not installed; the message says how to.
    ValueError: an impossible value, or more clients per round than clients.

  References:
    McMahan, Ramage, Talwar and Zhang, Learning differentially private recurrent
    language models, ICLR 2018. Wang, Balle and Kasiviswanathan, Subsampled
    Rényi differential privacy and analytical moments accountant, AISTATS 2019
    (`'fixed'`). Koskela, Jälkö and Honkela, Computing tight differential
    privacy guarantees using FFT, AISTATS 2020 (`'poisson'`).
  """
  noise_multiplier = positive('noise_multiplier', noise_multiplier)
  n = whole(1)('clients_per_round', clients_per_round)
  num_clients = whole(1)('num_clients', num_clients)
  num_rounds = whole(1)('num_rounds', num_rounds)
  delta = positive('delta', number(high=1)('delta', delta))
  one_of('fixed', 'poisson')('sampling', sampling)
  if n > num_clients:
    raise ValueError(
      f'clients_per_round must be at most num_clients, got '
      f'clients_per_round={n}, num_clients={num_clients}'
    )
  try:
    import dp_accounting  # pyright: ignore[reportMissingImports]
    from dp_accounting import (  # pyright: ignore[reportMissingImports]
      pld,
      rdp,
    )
  except ImportError as error:
    raise ImportError(
      'lca.privacy needs dp-accounting, which is not installed: pip install '
      "'lca[privacy]'"
    ) from error
  relation = dp_accounting.NeighboringRelation
  if sampling == 'fixed':
    # The accountant's noise is in units of the sensitivity, which is 2 C.
    noise = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
    event = dp_accounting.SampledWithoutReplacementDpEvent(
      num_clients, n, noise
    )
    accountant = rdp.RdpAccountant(neighboring_relation=relation.REPLACE_ONE)
  else:
    noise = dp_accounting.GaussianDpEvent(noise_multiplier)
    event = dp_accounting.PoissonSampledDpEvent(n / num_clients, noise)
    accountant = pld.PLDAccountant(relation.ADD_OR_REMOVE_ONE)
  accountant.compose(event, num_rounds)
  return float(accountant.get_epsilon(delta))


def main() -> None:
  """Prints the epsilon of the numbers on the command line."""
  parser = argparse.ArgumentParser('python -m lca.privacy', description=__doc__)
  for name, option in inspect.signature(epsilon).parameters.items():
    required = option.default is option.empty
    parser.add_argument(
      f'--{name.replace("_", "-")}',
      required=required,
      default=None if required else option.default,
    )
  given: dict[str, Any] = vars(parser.parse_args())
  try:
    print(f'epsilon = {epsilon(**given):.4g} at delta = {given["delta"]}')
  except (ImportError, ValueError) as error:
    parser.exit(2, f'{error}\n')


if __name__ == '__main__':
  main()
