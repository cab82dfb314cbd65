"""Sweeps: which runs, where, and what is left to do."""

import concurrent.futures
import fcntl
import re
import signal
import subprocess
import sys
import time

import processes
import pytest
from absl import flags
from run_files import PATIENCE, checkpoints, last_row, tiny

from lca.experiment import index, jobs, packing, sweep
from lca.experiment.rundir import RunDirectory

RUNS = {
  'a/krum': tiny('krum'),
  'a/median': tiny('median'),
  'b/krum': tiny('krum'),
  'b/wrong': tiny('krum', **{'data.min_examples': 10_000}),
}


def test_choosing_by_parts_and_seeds():
  assert list(sweep.choose(RUNS)) == [f'{name}/0' for name in RUNS]
  chosen = sweep.choose(RUNS, ['a', 'kr.*|median'], [3, 4])
  assert list(chosen) == [
    *('a/krum/3', 'a/krum/4'),
    *('a/median/3', 'a/median/4'),
  ]
  assert [config.seed for config in chosen.values()] == [3, 4, 3, 4]
  assert list(sweep.choose(RUNS, ['wrong|median', 'b'])) == ['b/wrong/0']
  with pytest.raises(ValueError, match='names are a, b, krum, median, wrong'):
    sweep.choose(RUNS, ['kru'])
  many = {f'a/{i}': RUNS['a/krum'] for i in range(100)}
  with pytest.raises(ValueError, match='25, 26, and 81 more: --dry-run'):
    sweep.choose(many, ['kru'])
  assert RUNS['a/krum'].seed == 0  # as it was


def test_values_are_of_their_keys_type():
  values = {'client.learning_rate': '0.5', 'data.name': 'other'}
  config = sweep.choose(RUNS, ['median'], values=values)['a/median/0']
  assert config.client.learning_rate == 0.5
  assert config.data.name == 'other'
  with pytest.raises(
    ValueError, match=r"num_rounds must be of type int, got 'many'"
  ):
    sweep.choose(RUNS, values={'num_rounds': 'many'})
  values = {'attack.sampled': 'False', 'model.features': '(4, 8)'}
  config = sweep.choose({'a': tiny('krum,zero')}, values=values)['a/0']
  assert config.attack.sampled is False
  assert config.model.features == (4, 8)
  with pytest.raises(
    ValueError, match=r"num_rounds must be of type int, got '0\.5'"
  ):
    sweep.choose(RUNS, values={'num_rounds': '0.5'})
  with pytest.raises(ValueError, match='no config key rounds'):
    sweep.choose(RUNS, values={'rounds': '3'})


def test_the_seed_is_no_value():
  with pytest.raises(ValueError, match='seed is set with --seeds'):
    sweep.choose(RUNS, seeds=[0], values={'seed': '3'})


def test_a_line_is_of_one_config(tmp_path):
  def record(name, seed, **values):
    runs = sweep.choose({name: RUNS['a/krum']}, (), [seed], values)
    return index.record(runs, tmp_path)

  (first,) = record('a/krum', 0).values()
  RunDirectory(first, tiny('krum').to_dict()).open()
  recorded = index.names(tmp_path)
  (free,) = record('a/krum', 0, **{'checkpoint.every': '7'}).values()
  assert free == first
  for seed in (0, 1):
    with pytest.raises(ValueError, match='a/krum: num_rounds is 1 in') as info:
      record('a/krum', seed, num_rounds='7')
    assert f'in {first} and 7 in {tmp_path}/' in str(info.value)
  assert index.names(tmp_path) == recorded
  record('b/krum', 1, num_rounds='7')
  record('a/krum', 1)
  assert list(index.names(tmp_path)) == ['a/krum/0', 'a/krum/1', 'b/krum/1']


def test_the_command_refuses_another_config_of_a_line(tmp_path):
  (tmp_path / 'sweep.py').write_text(ENDLESS)
  (endless,) = sweep.choose(sweep.load(tmp_path / 'sweep.py')).values()
  (place,) = index.record({'endless/0': endless}, tmp_path).values()
  RunDirectory(place, endless.to_dict()).open()
  command = [sys.executable, '-m', 'lca.sweep', f'--workdir={tmp_path}']
  command += [f'--config={tmp_path / "sweep.py"}', '--set=num_rounds=5']
  done = subprocess.run(
    command, cwd=processes.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.startswith('lca.sweep: error: endless: num_rounds is 100')


def test_two_sweeps_at_once_lose_no_name(tmp_path):
  runs = sweep.choose(RUNS, ['a'], range(4))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    done = [
      pool.submit(index.record, {k: v}, tmp_path) for k, v in runs.items()
    ]
  for one in done:
    one.result()
  assert set(index.names(tmp_path)) == set(runs)


TINY = """
from configs import digits

def get_runs():
  config = digits.get_config('krum').unlock()
  config.num_rounds = 1
  return {'a/krum': config}
"""


def test_a_sweep_goes_on_from_a_packed_one(tmp_path):
  """The finished run in the file is not made again."""
  (tmp_path / 'sweep.py').write_text(TINY)
  runs = sweep.choose(sweep.load(tmp_path / 'sweep.py'))
  first, second, file = (tmp_path / n for n in ('first', 'second', 'a.zip'))
  ((name, path),) = index.record(runs, first).items()
  with RunDirectory(path, runs[name].to_dict()) as directory:
    directory.open()
    directory.start([{'round': 1, 'test_accuracy': 0.123456789}])
    directory.finish({'num_rounds': 1, 'mark': 5.0})
  packing.pack(first, file)

  def start():
    command = [sys.executable, '-m', 'lca.sweep', f'--packed={file}']
    command += [f'--config={tmp_path}/sweep.py', f'--workdir={second}']
    return subprocess.run(
      command, cwd=processes.ROOT, capture_output=True, text=True
    )

  done = start()
  assert done.returncode == 0, done.stderr
  assert done.stdout == (
    f'1 runs of {file} put into {second}\n'
    '1 of 1 runs are finished already; nothing left\n'
  )
  for each in ('config.json', 'metrics.csv', 'summary.json'):
    copy = second / path.name / each
    assert copy.read_bytes() == (path / each).read_bytes()
  assert index.names(second) == index.names(first)
  file.write_bytes(b'PK')
  done = start()
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.startswith(f'lca.sweep: error: {file} is damaged')


GRID = 'krum,median x none,alie x aggregator.f=1,2,4'


@pytest.fixture
def command(monkeypatch, capsys):
  """Returns a function that runs the command in this process.

  The function takes arguments, and returns the exit code or message, and what
  was printed.
  """

  def run(*arguments):
    values = flags.FlagValues()
    sweep.define_flags(values)
    values(['lca.sweep', *arguments])
    monkeypatch.setattr(flags, 'FLAGS', values)
    try:
      sweep.main([''])
      code = 0
    except SystemExit as error:
      code = error.code
    return code, capsys.readouterr().out

  return run


def test_a_dry_run_writes_nothing(tmp_path, command, monkeypatch):
  """Lists the runs of a grid, of which three have begun."""
  source = 'configs/digits.py:dirichlet'
  runs, notes = sweep.load_grid(source, GRID)
  assert notes == ['median has no aggregator.f: one run instead of 3']
  values = {'data.alpha': '0.1', 'num_rounds': '3'}
  runs = sweep.choose(runs, ['krum', '.*f=[12]'], [7], values)
  places = index.record(runs, tmp_path)
  assert list(places) == [
    f'digits:dirichlet/krum/{attack}/aggregator.f={f}/7'
    for attack in ('none', 'alie')
    for f in (1, 2)
  ]
  ended, begun, opened, new = places
  for name in (ended, begun, opened):
    with RunDirectory(places[name], runs[name].to_dict()) as directory:
      directory.open()
      if name != opened:
        row = {'round': 1, 'test_accuracy': 0.5}
        directory.start([row] if name == begun else [row] * 3)
      if name == ended:
        directory.finish({'num_rounds': 3, 'average_test_accuracy': 0.5})
  times = 'round,finished,seconds\n1,T,30\n2,T,20\n3,T,40\n'
  (places[ended] / 'times.csv').write_text(times)
  before = {path: path.lstat().st_mtime_ns for path in tmp_path.glob('**/*')}
  checked = []

  def check(runs, *_):
    checked.extend(runs)
    return jobs.Checked({}, 'cpu')

  monkeypatch.setattr(jobs, 'check', check)
  code, printed = command(
    *(f'--config={source}', f'--grid={GRID}', f'--workdir={tmp_path}'),
    # Both of the regular expressions count.
    *('--only=.*f=[12]', '--only=krum', '--seeds=7', '--set=num_rounds=3'),
    *('--set=data.alpha=0.1', '--jobs=2', '--dry-run'),
  )
  assert code == 0
  assert checked == [new]
  states = [
    'finished             ',
    'begun (round 1 of 3) ',
    'begun (round 0 of 3) ',
    'to do                ',
  ]
  assert printed.splitlines() == [
    '8 combinations',
    *notes,
    *(
      f'{place.name}  {state} {name}'
      for (name, place), state in zip(places.items(), states, strict=True)
    ),
    # 8 rounds of 30 seconds each, two at a time.
    '4 runs: 1 finished, 2 begun, 1 to do; 2 min left',
  ]
  assert before == {p: p.lstat().st_mtime_ns for p in tmp_path.glob('**/*')}


def test_impossible_runs_stop_a_sweep(tmp_path, command, monkeypatch):
  def check(runs, files, num_jobs):
    assert files == ['configs/digits.py'] and num_jobs == 3
    wrong = {name: 'f is too large' for name in runs if 'f=8' in name}
    return jobs.Checked(wrong, 'cpu')

  monkeypatch.setattr(jobs, 'check', check)
  arguments = ['--config=configs/digits.py', '--grid=krum x aggregator.f=1,8']
  arguments += [f'--workdir={tmp_path}/runs', '--seeds=0,1', '--jobs=3']
  wrong = [
    '  f is too large',
    '    digits/krum/aggregator.f=8/0',
    '    digits/krum/aggregator.f=8/1',
  ]
  code, printed = command(*arguments)
  assert code.splitlines() == [
    'lca.sweep: error: 2 of 4 runs are impossible; leave them out with '
    '--skip-infeasible, or correct them:',
    *wrong,
  ]
  assert printed == '2 combinations\n'
  code, printed = command(*arguments, '--skip-infeasible', '--dry-run')
  assert code == 0
  _, left_out, *names, first, second, total = printed.splitlines()
  assert left_out == '2 of 4 runs are impossible and left out:'
  assert names == wrong
  assert first.endswith('  to do  digits/krum/aggregator.f=1/0')
  assert second.endswith('  to do  digits/krum/aggregator.f=1/1')
  assert total.startswith('2 runs: 0 finished, 0 begun, 2 to do; no times')
  code, _ = command(*arguments, '--skip-infeasible', '--only=.*f=8')
  assert code.startswith('lca.sweep: error: 2 of 2 runs are impossible')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('backend', 'more', 'at_once'),
  [
    ('cpu', (), 1),
    ('gpu', (), None),
    ('tpu', ('--seeds-at-once=1',), 1),
    ('cpu', ('--seeds-at-once=3',), 3),
    ('gpu', ('--seeds=0',), 1),
  ],
)
def test_accelerators_run_all_seeds_together(
  tmp_path, command, monkeypatch, backend, more, at_once
):
  given = []
  monkeypatch.setattr(jobs, 'check', lambda *_: jobs.Checked({}, backend))
  monkeypatch.setattr(
    jobs, 'run_all', lambda *_, seeds_at_once, **__: given.append(seeds_at_once)
  )
  seeds = () if more == ('--seeds=0',) else ('--seeds=0,1',)
  code, _ = command(
    *('--config=configs/digits.py', '--grid=krum', f'--workdir={tmp_path}'),
    *(*seeds, *more),
  )
  assert (code, given) == (0, [at_once])


@pytest.mark.parametrize(
  ('flags_given', 'message'),
  [
    (['--grid=krum', '--scale=full'], '--scale=full does not go with --grid'),
    (['--grid=krum x num_rounds=1', '--set=num_rounds=2'], 'leave out one of'),
    (['--grid=krum', '--dry-run', '--packed=x.zip'], 'leave out one of them'),
    (['--grid=krum', '--config=configs/tables.py'], 'it has no get_config()'),
    (['--grid=krum', '--config=nowhere.py:krum'], 'there is no file'),
    ([], 'it is a setting, which needs a --grid'),
    (
      ['--grid=krum x none,alie', '--set=attack.z=1'],
      'digits/krum/none: there is no config key attack.z',
    ),
  ],
)
def test_flags_that_do_not_go_together(flags_given, message):
  values = flags.FlagValues()
  sweep.define_flags(values)
  values(['', '--config=configs/digits.py', '--workdir=x', *flags_given])
  with pytest.raises(ValueError, match=re.escape(message)):
    sweep.runs_of(values)


def test_what_is_no_sweep(tmp_path):
  with pytest.raises(ValueError, match='no sweep'):
    sweep.load(tmp_path / 'none.py')
  (tmp_path / 'empty.py').touch()
  with pytest.raises(ValueError, match='no get_runs'):
    sweep.load(tmp_path / 'empty.py')
  assert 'fig5/krum' in sweep.load('configs/legato_figures.py')


def test_a_scale_is_of_those_that_have_several():
  tables, attacks = 'configs/tables.py', 'configs/attacks.py'
  assert len(sweep.load(tables)) == len(sweep.load(tables, 'full')) == 144
  assert 'reduced/table1/fashion_mnist/plain' in sweep.load(tables, 'reduced')
  with pytest.raises(ValueError, match="unknown scale 'half'"):
    sweep.load(tables, 'half')
  with pytest.raises(ValueError, match="one scale only, got 'full'"):
    sweep.load(attacks, 'full')
  chosen = sweep.choose(sweep.load(tables), ['table1', 'fashion_mnist'])
  assert [name.split('/')[2] for name in chosen] == [
    *('plain', 'layerwise', 'cosine', 'layerwise_cosine')
  ]


def free(workdir):
  """Returns True if no process holds the directory."""
  with open(workdir / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    return True


ENDLESS = """
from configs import digits

def get_runs():
  config = digits.get_config('krum').unlock()
  config.update_from_flattened_dict({
    'num_rounds': 100_000,
    'checkpoint.every': 100_000,
    'model.features': (2,),
    'model.hidden': (),
    'client.local_epochs': 1,
  })
  return {'endless': config.lock()}
"""


def test_a_sweep_leaves_no_process_behind(tmp_path):
  (tmp_path / 'sweep.py').write_text(ENDLESS)
  command = [sys.executable, '-m', 'lca.sweep', f'--workdir={tmp_path}']
  command.append(f'--config={tmp_path / "sweep.py"}')

  def started():
    return subprocess.Popen(command, cwd=processes.ROOT, stdout=subprocess.PIPE)

  reached = 0
  ends = [(signal.SIGTERM, 143), (signal.SIGINT, 143), (signal.SIGKILL, -9)]
  for sign, code in ends:
    with started() as process:
      deadline = time.monotonic() + PATIENCE
      while (
        not (runs_of := list(tmp_path.glob('*/metrics.csv')))
        or last_row(runs_of[0].parent) < reached + 2
      ):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
      (workdir,) = (file.parent for file in runs_of)
      assert not free(workdir)
      process.send_signal(sign)
      assert process.wait(PATIENCE) == code
      deadline = time.monotonic() + PATIENCE
      while not free(workdir):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert checkpoints(workdir)[0][-1] == last_row(workdir) > reached
    reached = last_row(workdir)
