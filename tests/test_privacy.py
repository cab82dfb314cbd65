"""Tests of epsilon against integrals of the densities, and of its inputs."""

import contextlib
import io
import math
import sys

import numpy as np
import pytest
from scipy import optimize, stats

from configs import digits
from lca import privacy
from lca.experiment import describe, settings

NUMBERS = {
  'noise_multiplier': 1.0,
  'clients_per_round': 10,
  'num_clients': 100,
  'num_rounds': 1,
}


@pytest.fixture
def accountant():
  pytest.importorskip(
    'dp_accounting', reason="needs dp-accounting: pip install 'lca[privacy]'"
  )


def exact(share, sends, deviation, delta=1e-5):
  """Returns epsilon of one round in which a client sends one of two numbers.

  The others send zeros; the client takes part with the probability `share`.
  Sum and noise are a mixture of two normal distributions, and delta is the
  integral of the positive part of p - e^epsilon q.
  """

  x = np.linspace(-12 * deviation - 1, 12 * deviation + 1, 40001)
  normal = stats.norm(scale=deviation).pdf
  p, q = (share * normal(x - at) + (1 - share) * normal(x) for at in sends)

  def excess(epsilon, one, two):
    return np.trapezoid(np.maximum(one - math.exp(epsilon) * two, 0), x)

  def larger(epsilon):
    return max(excess(epsilon, p, q), excess(epsilon, q, p))

  return optimize.brentq(lambda e: larger(e) - delta, 0, 50, xtol=1e-6)


@pytest.mark.parametrize(('z', 'n'), [(1.0, 10), (0.7, 100), (2.0, 1)])
def test_poisson_sampling_adds_or_removes_a_client(accountant, z, n):
  numbers = NUMBERS | {'noise_multiplier': z, 'clients_per_round': n}
  got = privacy.epsilon(**numbers, sampling='poisson')
  want = exact(n / 100, (1, 0), z)  # the client sends C, or is not there
  assert want - 1e-4 <= got <= want * 1.001 + 1e-3


@pytest.mark.parametrize(('z', 'n'), [(1.0, 10), (4.0, 100), (2.0, 1)])
def test_a_fixed_number_of_clients_replaces_one(accountant, z, n):
  numbers = NUMBERS | {'noise_multiplier': z, 'clients_per_round': n}
  got = privacy.epsilon(**numbers)
  want = exact(n / 100, (1, -1), z)  # the client sends C, or -C
  assert got >= want
  if n == 100:  # without sampling, the accountant's bound is close
    assert got <= 1.2 * want


def test_rounds_add_up(accountant):
  """T rounds of all clients are one round with noise 1 / sqrt(T)."""
  numbers = NUMBERS | {'clients_per_round': 100, 'num_rounds': 16}
  for sampling in ('fixed', 'poisson'):
    got = privacy.epsilon(
      **numbers | {'noise_multiplier': 8.0}, sampling=sampling
    )
    one = numbers | {'num_rounds': 1, 'noise_multiplier': 2.0}
    want = privacy.epsilon(**one, sampling=sampling)
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize('sampling', ['fixed', 'poisson'])
def test_what_makes_it_more_private(accountant, sampling):
  epsilon = privacy.epsilon(**NUMBERS, sampling=sampling)
  for key, value in (
    ('noise_multiplier', 1.5),
    ('num_clients', 200),
    ('clients_per_round', 5),
    ('delta', 1e-4),
  ):
    assert (
      privacy.epsilon(**NUMBERS | {key: value}, sampling=sampling) < epsilon
    )
  more = privacy.epsilon(**NUMBERS | {'num_rounds': 9}, sampling=sampling)
  assert more > epsilon


@pytest.mark.quick
@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'noise_multiplier': 0.0}, 'noise_multiplier must be above 0'),
    ({'noise_multiplier': np.nan}, 'noise_multiplier .* nan'),
    ({'clients_per_round': 0}, 'clients_per_round must be at least 1'),
    ({'clients_per_round': 101}, 'clients_per_round=101, num_clients=100'),
    ({'num_rounds': 1.5}, r'num_rounds must be an integer, got 1\.5'),
    ({'delta': 0.0}, 'delta must be above 0'),
    ({'delta': 1.5}, r'delta must be .* got 1\.5'),
    ({'sampling': 'shuffled'}, "sampling .*'shuffled'"),
  ],
)
def test_wrong_numbers(change, words):
  with pytest.raises(ValueError, match=words):
    privacy.epsilon(**NUMBERS | change)


@pytest.mark.quick
def test_without_the_library_one_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  with pytest.raises(ImportError, match=r"pip install 'lca\[privacy\]'"):
    privacy.epsilon(**NUMBERS)


def printed(monkeypatch, *flags):
  """Returns what the command prints."""
  monkeypatch.setattr(sys, 'argv', ['privacy', *flags])
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    try:
      privacy.main()
    except SystemExit as stopped:
      assert stopped.code == 2
  return out.getvalue()


FLAGS = ['--noise-multiplier=1', '--clients-per-round=10', '--num-rounds=1']


def test_the_command(accountant, monkeypatch):
  out = printed(monkeypatch, *FLAGS, '--num-clients=100', '--delta=1e-4')
  want = privacy.epsilon(**NUMBERS, delta=1e-4)
  assert out == f'epsilon = {want:.4g} at delta = 1e-4\n'


def test_the_commands_errors_are_a_line(monkeypatch):
  out = printed(monkeypatch, *FLAGS, '--num-clients=5')
  assert out.splitlines() == [
    'clients_per_round must be at most num_clients, got clients_per_round=10, '
    'num_clients=5'
  ]
  assert 'required: --num-clients' in printed(monkeypatch, *FLAGS)


# Runs ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('presets', 'changes', 'want'),
  [
    ('dp_fedavg', {}, 1.0),
    ('adaptive_clip', {'noise_multiplier': 0.5}, 0.5),
    ('adaptive_clip', {}, None),
    ('layerwise_adaptive_clip', {'noise_multiplier': 0.5}, None),
    ('nnm,dp_fedavg', {}, None),
    ('norm_clipping', {}, 0.025 * 15 / 5.0),
    ('norm_clipping', {'sigma': 0.0}, None),
    ('norm_clipping', {'weights': 'examples'}, None),
    ('norm_clipping', {'scope': 'leaf'}, None),
    ('norm_clipping,nnm', {}, None),
    ('median', {'sigma': 1.0}, None),
  ],
)
def test_which_runs_are_private(presets, changes, want):
  config = digits.get_config(presets)
  config.aggregator.update(changes)
  assert describe.noise_multiplier(config.to_dict(), 15) == want


@pytest.mark.parametrize(
  ('attack', 'n', 'clients'),
  [
    ('', 15, 20),
    ('label_flipping,', 14, 16),  # 1 of 15 and 4 of 20 attack
    ('label_flipping_sampled,', 15, 20),
  ],
)
def test_a_run_says_its_epsilon(accountant, attack, n, clients):
  """Beside an attack, honest clients are drawn from the honest ones alone."""
  config = digits.get_config(f'{attack}dp_fedavg').unlock()
  config.num_rounds = 3
  made = settings.from_config(config)
  said = list(describe.lines(made.config, made.parts()))[1]
  numbers = {'noise_multiplier': 1.0, 'clients_per_round': n}
  want = privacy.epsilon(**numbers, num_clients=clients, num_rounds=3)
  assert said.startswith(f'differential privacy: epsilon {want:.4g} at delta')
  assert f'{n} of {clients} clients a round, 3 rounds' in said
