"""A fixture that chooses the form in which a convolution runs."""

import pytest

from lca.models.kernels import convolution


@pytest.fixture(params=['cpu', 'accelerator'])
def form(request, monkeypatch):
  """Runs a test twice: in the form for CPUs and in that for accelerators."""
  if request.param == 'accelerator':
    monkeypatch.setattr(
      convolution.lax,
      'platform_dependent',
      lambda *args, cpu, default: default(*args),
    )
