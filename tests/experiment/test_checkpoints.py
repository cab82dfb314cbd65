"""Tests that checkpoints are restored, and that errors name what is wrong."""

import collections
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lca.experiment import checkpoints as checkpoints_module
from lca.experiment.checkpoints import CheckpointError, Checkpoints
from lca.federated.server import ServerState

# If one part of a checkpoint fails, Orbax abandons the parts that it has begun,
# which pytest reports as unraisable exceptions.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)

CONFIG = {'num_rounds': 6, 'seed': 0, 'parallel': {'chunk_size': None}}
PARAMS = {'kernel': jnp.zeros((40, 30)), 'bias': jnp.zeros(3, jnp.bfloat16)}


def state(number):
  """Returns a state with every kind of leaf: random, bfloat16, scalar, none."""
  params = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(number), x.shape, x.dtype),
    PARAMS,
  )
  opt_state = optax.adam(1e-3).init(params)
  return ServerState({'params': params}, opt_state, jnp.full((), number), ())


def rows(number):
  return [{'round': i + 1, 'loss': 1 / (i + 3)} for i in range(number)]


def save(path, numbers, config=CONFIG, keep=2):
  with Checkpoints(path, config, keep) as checkpoints:
    for number in numbers:
      so_far = rows(number)
      checkpoints.save(state(number), so_far)
      so_far.append({'round': number + 1})  # the loop appends to the same list


def restore(path, initial=None, config=CONFIG):
  with Checkpoints(path, config, 2) as checkpoints:
    return checkpoints.restore(state(0) if initial is None else initial)


def check_found(found, number):
  found_state, found_rows = found
  assert found_rows == rows(number)
  jax.tree.map(np.testing.assert_array_equal, found_state, state(number))
  assert isinstance(found_state, ServerState)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Saves checkpoints of rounds 2 and 4; returns their folder."""
  path = tmp_path_factory.mktemp('run of two') / 'checkpoints'
  save(path, (2, 4))
  return path


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'checkpoints')


def steps(path):
  return sorted(int(each.name) for each in path.iterdir())


@pytest.mark.quick
def test_the_newest_is_found_and_old_ones_go(tmp_path):
  initial = state(0)
  found, none = restore(tmp_path, initial)
  assert found is initial and none == []
  save(tmp_path, (1, 2, 3))
  assert steps(tmp_path) == [2, 3]
  check_found(restore(tmp_path), 3)
  with Checkpoints(tmp_path, CONFIG, 3) as checkpoints:
    checkpoints.restore(initial)
    checkpoints.save(state(4), [*rows(3), {'round': 4, 'loss': float('nan')}])
  assert steps(tmp_path) == [2, 3, 4]
  assert np.isnan(restore(tmp_path)[1][-1]['loss'])


def test_rounds_may_grow_and_machines_change(copy):
  other = {'num_rounds': 9, 'seed': 0, 'parallel': {'chunk_size': 3}}
  check_found(restore(copy, config=other), 4)


def test_a_save_that_was_killed_is_no_checkpoint(copy):
  killed = copy / '6.orbax-checkpoint-tmp'
  shutil.copytree(copy / '4', killed)
  (killed / 'commit_success.txt').unlink(missing_ok=True)
  check_found(restore(copy), 4)
  save(copy, (5,))
  assert steps(copy) == [4, 5]


def test_another_config_is_refused(copy):
  message = r'checkpoints/4 holds the run of another config: seed was 0 .* 1 '
  with pytest.raises(CheckpointError, match=message):
    restore(copy, config=CONFIG | {'seed': 1})
  assert steps(copy) == [2, 4]


@pytest.mark.parametrize(
  ('kernel', 'message'),
  [
    (
      jnp.zeros((40, 31)),
      r'float32 \[40, 30\] there and is float32 \[40, 31\]',
    ),
    (jnp.zeros((40, 30), jnp.float16), r'float32 .* and is float16 \[40, 30\]'),
    (None, r'float32 \[40, 30\] there and is absent now'),
  ],
)
def test_another_tree_is_refused(copy, kernel, message):
  initial = state(0)
  initial.variables['params']['kernel'] = kernel
  message = f'4 holds .* other code: variables/params/kernel was {message}'
  with pytest.raises(CheckpointError, match=message):
    restore(copy, initial)
  assert steps(copy) == [2, 4]


def files(path):
  return sorted(each for each in path.rglob('*') if each.is_file())


DAMAGES = {
  'empty': lambda content: b'',
  'half': lambda content: content[: len(content) // 2],
  'a byte short': lambda content: content[:-1],
  'another bit': lambda content: (
    content[: len(content) // 2]
    + bytes([content[len(content) // 2] ^ 1])
    + content[len(content) // 2 + 1 :]
  ),
  'gone': None,
}


def damage(file, how):
  if how == 'gone':
    file.unlink()
  else:
    file.write_bytes(DAMAGES[how](file.read_bytes()))


@pytest.mark.parametrize('how', DAMAGES)
def test_any_damaged_file_of_the_newest(saved, tmp_path, how, capfd):
  """Restoring returns the same bits, or those of the checkpoint before."""
  fallen_back = 0
  for i, name in enumerate(files(saved / '4')):
    path = shutil.copytree(saved, tmp_path / str(i))
    damage(path / name.relative_to(saved), how)
    found = restore(path)
    # Some files hold nothing that restoring needs.
    intact = len(found[1]) == 4
    check_found(found, 4 if intact else 2)
    out, _ = capfd.readouterr()
    message = re.escape(f'deleting a damaged checkpoint, {path}/4 (')
    assert bool(re.search(message, out)) != intact
    assert steps(path) == ([2, 4] if intact else [2])
    if not intact and not fallen_back:
      save(path, (4,))
      check_found(restore(path), 4)
    fallen_back += not intact
  # These are at least the rows, the arrays' metadata and the arrays themselves.
  assert fallen_back >= 3


def test_what_cannot_be_read_is_not_deleted(saved, tmp_path):
  """A link to itself stands for an error of the system, not wrong bytes."""
  refused = 0
  for i, name in enumerate(files(saved / '4' / 'state')):
    if name.name == '_METADATA':  # Orbax takes a link here for a missing file
      continue
    path = shutil.copytree(saved, tmp_path / str(i))
    file = path / name.relative_to(saved)
    file.unlink()
    file.symlink_to(file.name)
    try:
      check_found(restore(path), 4)  # some files are not read
    except CheckpointError as error:
      assert f'cannot read {path}/4 (' in str(error)
      assert 'Too many levels of symbolic links' in str(error)
      refused += 1
    assert steps(path) == [2, 4]
  # These are at least the arrays, their metadata and Orbax's description.
  assert refused >= 3


@pytest.mark.parametrize(
  'error', [PermissionError(13, 'Permission denied'), MemoryError()]
)
def test_an_error_of_the_machine_is_no_damage(copy, monkeypatch, error):
  def failing(self, step, name, args):
    raise error

  monkeypatch.setattr(Checkpoints, '_item', failing)
  with pytest.raises(CheckpointError, match=r'cannot read .*checkpoints/4 \('):
    restore(copy)
  assert steps(copy) == [2, 4]


def test_no_good_one_left(copy):
  for step in (2, 4):
    for file in files(copy / str(step) / 'state'):
      os.truncate(file, 0)
  with pytest.raises(
    CheckpointError, match='no checkpoint can be read'
  ) as info:
    restore(copy)
  for part in ('checkpoints/2 (', 'checkpoints/4 (', f'delete {copy}'):
    assert part in str(info.value)
  assert '\n' not in str(info.value)
  assert steps(copy) == [2, 4]


def test_what_cannot_be_written_is_said(tmp_path):
  path = tmp_path / 'checkpoints'
  with pytest.raises(CheckpointError, match='cannot write a checkpoint into'):
    with Checkpoints(path, CONFIG, 2) as checkpoints:
      shutil.rmtree(path)
      path.touch()
      checkpoints.save(state(2), rows(2))


def test_a_checkpoint_from_before_the_last_change_is_read(tmp_path):
  """The state of an older version has four fields."""
  older = collections.namedtuple('ServerState', ServerState._fields[:4])
  now = state(3)
  about = {
    'config': CONFIG,
    'leaves': checkpoints_module._described_leaves(now),
    'rows': rows(3),
  }
  with ocp.CheckpointManager(tmp_path) as manager:
    parts = ocp.args.Composite(
      about=ocp.args.JsonSave(about),
      state=ocp.args.StandardSave(older(*now[:4])),
    )
    manager.save(3, args=parts)
  check_found(restore(tmp_path), 3)
