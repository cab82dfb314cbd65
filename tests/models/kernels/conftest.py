"""The form in which a convolution runs."""

import pytest

from lca.models.kernels import convolution


@pytest.fixture(params=['cpu', 'accelerator'])
def form(request, monkeypatch):
  """Runs a test in the CPU's form and in the one for accelerators."""
  if request.param == 'accelerator':
    monkeypatch.setattr(
      convolution.lax,
      'platform_dependent',
      lambda *args, cpu, default: default(*args),
    )
