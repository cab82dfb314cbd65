"""A run in several processes on CPU equals the run in a single process."""

import csv
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from lca.experiment import host

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir, *flags):
  """Returns the command line of a small run."""
  return [
    sys.executable,
    str(ROOT / 'main.py'),
    '--config=configs/digits.py:layerwise_cosine_krum,model_replacement',
    f'--workdir={workdir}',
    '--config.num_rounds=3',
    '--config.checkpoint.every=2',
    '--config.client.local_epochs=1',
    '--config.model.features=(2,)',
    '--config.model.hidden=()',
    # 4 devices share 7 clients, so one row has no examples.
    '--config.server.clients_per_round=7',
    *flags,
  ]


def start(arguments, devices):
  """Starts a process with some virtual CPU devices."""
  flags = f'--xla_force_host_platform_device_count={devices}'
  flags = f'{os.environ["XLA_FLAGS"]} {flags}'  # the last flag wins
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process):
  """Waits for a process to succeed and returns its standard output."""
  out, err = process.communicate(timeout=170)
  assert process.returncode == 0, out + err
  return out


def run_in_two(workdir, *flags):
  """Runs in two processes of two devices each; returns their outputs."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    start(
      command(
        workdir,
        f'--coordinator={address}',
        '--num_processes=2',
        f'--process_id={i}',
        *flags,
      ),
      devices=2,
    )
    for i in range(2)
  ]
  return [end(process) for process in processes]


def metrics(workdir):
  with open(workdir / 'metrics.csv') as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize(
  'stops', [(), pytest.param((2,), marks=pytest.mark.thorough)], ids=str
)
def test_two_processes_run_what_one_does(stops, tmp_path):
  end(start(command(tmp_path / 'one'), devices=4))
  for stop in stops:  # the next command resumes the run
    run_in_two(tmp_path / 'two', f'--config.num_rounds={stop}')
  first, second = run_in_two(tmp_path / 'two')
  assert 'round 3/3' in first and 'test accuracy' in first
  assert 'round' not in second  # only the first process prints and writes
  one, two = metrics(tmp_path / 'one'), metrics(tmp_path / 'two')
  assert len(one) == len(two) == 3
  for row, same in zip(one, two, strict=True):
    assert row.keys() == same.keys()
    np.testing.assert_allclose(
      [float(x) for x in row.values()],
      [float(x) for x in same.values()],
      rtol=1e-5,
    )
  # The first process gathers the model, which both processes hold in parts.
  model, same = (
    safetensors.numpy.load_file(tmp_path / name / 'model.safetensors')
    for name in ('one', 'two')
  )
  assert model.keys() == same.keys()
  for name in model:
    np.testing.assert_allclose(model[name], same[name], rtol=1e-3, atol=1e-5)
  counts = np.loadtxt(tmp_path / 'two' / 'confusion.csv', int, delimiter=',')
  accuracy = np.trace(counts) / counts.sum()
  np.testing.assert_allclose(accuracy, float(two[-1]['test_accuracy']))
  about = json.loads((tmp_path / 'two' / 'config.json').read_text())
  assert len(about['environments'][-1]['devices']) == 4
  assert len(list((tmp_path / 'two').glob('events.*'))) == 1


@pytest.mark.parametrize(
  ('environment', 'several'),
  [
    ({}, False),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_JOB_ID': '7'}, False),
    ({'SLURM_STEP_NUM_TASKS': '4', 'SLURM_JOB_ID': '7'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'worker-0,worker-1'}, True),
  ],
)
def test_pods_and_slurm_need_no_flags(monkeypatch, environment, several):
  for name in ('SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  joined = []
  monkeypatch.setattr(
    'jax.distributed.initialize', lambda *args: joined.append(args)
  )
  host.join_processes()
  assert joined == ([()] if several else [])


def test_incomplete_flags():
  with pytest.raises(ValueError, match='needs num_processes and process_id'):
    host.join_processes('127.0.0.1:1234', 2)
  with pytest.raises(ValueError, match=r'process_id=2 .*\[0, 2\)'):
    host.join_processes('127.0.0.1:1234', 2, 2)
