"""Packed sweeps: what a file holds, what comes out of it, what is refused."""

import csv
import io
import json
import math
import os
import pathlib
import shutil
import zipfile

import pytest
from run_files import CONFIG

from lca.experiment import index, packing
from lca.experiment.rundir import RunDirectory

pytestmark = pytest.mark.quick

FILES = ('config.json', 'metrics.csv', 'summary.json')


def write_run(workdir, run, seed, metrics=('test_loss',), finish=True):
  """Leaves behind the files of a run of two rounds."""
  values = {'test_loss': 1 / 3, 'norm/a': 1e-30, 'factor/b': math.nan}
  with RunDirectory(workdir / run, CONFIG | {'seed': seed}) as directory:
    directory.open()
    rows = [
      {'round': 1},
      {'round': 2} | {name: values[name] for name in metrics},
    ]
    directory.start(rows, [m for m in metrics if m != 'test_loss'])
    if finish:
      directory.finish(
        {'num_rounds': 2, 'final_test_loss': values[metrics[-1]]}
      )
  (workdir / run / 'times.csv').unlink()  # as in runs of older versions


@pytest.fixture
def workdir(tmp_path):
  """Makes a sweep: three runs finished, one begun and one not begun."""
  workdir = tmp_path / 'runs'
  write_run(workdir, '0b', 0)
  write_run(workdir, '0a', 1, ('norm/a', 'test_loss'))
  write_run(workdir, '0c', 2, ('factor/b',))
  write_run(workdir, '0d', 3, finish=False)
  names = {f'a/line/{seed}': f'0{run}' for seed, run in enumerate('bacde')}
  (workdir / 'sweep.json').write_text(json.dumps(names))
  return workdir


def contents(folder, runs=('0a', '0b', '0c')):
  files = ['sweep.json', *(f'{run}/{name}' for run in runs for name in FILES)]
  return {name: (folder / name).read_bytes() for name in files}


def all_files(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_finished_runs_come_back_byte_for_byte(workdir, tmp_path):
  edited = workdir / '0c' / 'config.json'  # by hand: another indentation
  edited.write_text(json.dumps(json.loads(edited.read_text()), indent=4))
  assert packing.pack(workdir, tmp_path / 'sweep.zip') == (3, 2)
  packing.unpack(tmp_path / 'sweep.zip', tmp_path / 'out')
  assert all_files(tmp_path / 'out') == contents(workdir)
  with zipfile.ZipFile(tmp_path / 'sweep.zip') as packed:
    names = packed.namelist()
  assert [n for n in names if '/' in n] == ['verbatim/0c/config.json']


def test_small_files_of_runs_are_carried(workdir, tmp_path):
  more = {
    '0a/clients.csv': b'client,byzantine\n0,1\n',
    '0a/times.csv': b'round,finished,seconds\r\n',
    '0b/confusion.csv': b'1,0\n0,2\n',
    '0b/forensics.npz': bytes(range(256)),
  }
  others = ('0a/model.safetensors', '0a/best.safetensors', '0b/more.csv')
  for name in [*more, *others, '0a/forensics.npz.tmp', '0d/clients.csv']:
    (workdir / name).write_bytes(more.get(name, b'not packed'))
  packing.pack(workdir, tmp_path / 'sweep.zip')
  packing.unpack(tmp_path / 'sweep.zip', tmp_path / 'out')
  assert all_files(tmp_path / 'out') == contents(workdir) | more
  assert packing.add(tmp_path / 'sweep.zip', tmp_path / 'another') == 3
  for name, content in more.items():
    assert (tmp_path / 'another' / name).read_bytes() == content
  with zipfile.ZipFile(tmp_path / 'sweep.zip') as packed:
    assert {f'files/{name}' for name in more} < {*packed.namelist()}
    assert json.loads(packed.read('format.json'))['version'] == 1


def test_the_file_reads_as_one_table(workdir, tmp_path):
  packing.pack(workdir, tmp_path / 'sweep.zip')
  with zipfile.ZipFile(tmp_path / 'sweep.zip') as packed:
    texts = {name: packed.read(name).decode() for name in packed.namelist()}
  rows = list(csv.DictReader(io.StringIO(texts['metrics.csv'])))
  assert list(rows[0])[:3] == ['run', 'round', 'test_loss']
  assert list(rows[0])[-2:] == ['norm/a', 'factor/b']
  table = [
    (r['run'], r['round'], r['test_loss'], r['norm/a'], r['factor/b'])
    for r in rows
  ]
  third = str(1 / 3)
  assert table == [
    *(('0a', '1', '', '', ''), ('0a', '2', third, '1e-30', '')),
    *(('0b', '1', '', '', ''), ('0b', '2', third, '', '')),
    *(('0c', '1', '', '', ''), ('0c', '2', '', '', 'nan')),
  ]
  parsed = {n: json.loads(t) for n, t in texts.items() if n.endswith('.json')}
  assert parsed['configs.json']['0a'] == CONFIG | {'seed': 1}
  assert parsed['summaries.json']['0c']['final_test_loss'] is None
  assert parsed['sweep.json']['a/line/0'] == '0b'
  assert parsed['columns.json']['0b'][0] == 'round'
  environments = parsed['environments.json']
  assert len(environments['environments']) == 1  # equal ones stand once
  assert environments['runs'] == {'0a': [0], '0b': [0], '0c': [0]}


def test_the_same_runs_give_the_same_bytes(workdir, tmp_path, monkeypatch):
  first, second = tmp_path / '1.zip', tmp_path / 'new' / '2.zip'
  packing.pack(workdir, first)
  shutil.copytree(workdir, tmp_path / 'copy')
  os.utime(tmp_path / 'copy' / '0a' / 'metrics.csv', (0, 0))
  monkeypatch.setattr('time.time', lambda: 2e9)
  packing.pack(tmp_path / 'copy', second)
  assert first.read_bytes() == second.read_bytes()
  packing.unpack(first, tmp_path / 'out')
  packing.pack(tmp_path / 'out', first)
  assert first.read_bytes() == second.read_bytes()
  assert not list(tmp_path.glob('*.tmp'))


def test_environments_of_a_run_keep_their_order(workdir, tmp_path):
  file = workdir / '0a' / 'config.json'
  about = json.loads(file.read_text())
  (here,) = about['environments']
  about['environments'] = [here | {'commit': 'old'}, here]
  file.write_text(json.dumps(about, indent=2) + '\n')
  packing.pack(workdir, tmp_path / 'sweep.zip')
  packing.unpack(tmp_path / 'sweep.zip', tmp_path / 'out')
  assert all_files(tmp_path / 'out') == contents(workdir)
  with zipfile.ZipFile(tmp_path / 'sweep.zip') as packed:
    environments = json.loads(packed.read('environments.json'))
  assert environments['runs'] == {'0a': [0, 1], '0b': [1], '0c': [1]}


def test_nothing_finished_is_not_packed(workdir, tmp_path):
  for run in ('0a', '0b', '0c'):
    (workdir / run / 'summary.json').unlink()
  message = f'{workdir} holds no finished run to pack, and 5 unfinished'
  with pytest.raises(ValueError, match=message):
    packing.pack(workdir, tmp_path / 'sweep.zip')
  assert not (tmp_path / 'sweep.zip').exists()


def test_a_damaged_run_is_not_packed(workdir, tmp_path):
  (workdir / '0a' / 'metrics.csv').write_text('round\n1\n')
  message = f'{workdir}/0a/metrics.csv is damaged .*delete the directory'
  with pytest.raises(ValueError, match=message):
    packing.pack(workdir, tmp_path / 'sweep.zip')
  assert not (tmp_path / 'sweep.zip').exists()


def test_a_run_elsewhere_is_not_packed(workdir, tmp_path):
  (workdir / 'sweep.json').write_text('{"a/line/0": "../other/0b"}')
  with pytest.raises(ValueError, match=r'a/line/0 at \.\./other.*move the run'):
    packing.pack(workdir, tmp_path / 'sweep.zip')


@pytest.fixture
def packed(workdir, tmp_path):
  packing.pack(workdir, tmp_path / 'sweep.zip')
  return tmp_path / 'sweep.zip'


def rewrite(file, **members):
  """Replaces members of a zip file, and adds those that are new."""
  with zipfile.ZipFile(file) as old:
    texts = {name: old.read(name) for name in old.namelist()}
  with zipfile.ZipFile(file, 'w') as new:
    for name, text in (texts | members).items():
      if text is not None:
        new.writestr(name, text)


def check_refused(file, message):
  """Checks that each use of the file raises an error and leaves no trace."""
  out = file.with_name('out')

  def read():
    with packing.opened(file):
      raise AssertionError

  for use in (
    lambda: packing.unpack(file, out),
    lambda: packing.add(file, out),
    read,
  ):
    with pytest.raises(ValueError, match=message) as info:
      use()
    assert str(file) in str(info.value) and '\n' not in str(info.value)
    assert not out.exists()


def test_a_truncated_file(packed):
  content = packed.read_bytes()
  for size in (0, 10, len(content) // 2, len(content) - 1):
    packed.write_bytes(content[:size])
    check_refused(packed, 'is damaged or no zip file .*: copy it once more')


def test_a_damaged_file_is_refused_or_gives_the_same_runs(packed, workdir):
  """Flips bits of each byte; those of times and rights say nothing of runs."""
  content = packed.read_bytes()
  packed.write_bytes(content)
  refused = 0
  for place in range(len(content)):
    packed.write_bytes(
      content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
    )
    try:
      assert packing._read(packed) == contents(workdir)
    except ValueError as error:
      refused += 1
      assert str(packed) in str(error)
  assert refused > len(content) / 2


def test_a_file_that_lacks_something(packed):
  rewrite(packed, **{'columns.json': '{}'})
  check_refused(packed, 'is damaged .*copy it once more, or write it anew')
  rewrite(packed, **{'columns.json': None})
  check_refused(packed, 'is damaged .*copy it once more, or write it anew')


def test_a_foreign_file(packed):
  packed.write_text('{"a": 1}')
  check_refused(packed, 'is damaged or no zip file')
  with zipfile.ZipFile(packed, 'w') as other:
    other.writestr('notes.txt', 'of something else')
  check_refused(packed, 'is a zip file but no packed sweep: .*--pack=')


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '{"format": "other", "version": 1}']
)
def test_a_foreign_format(packed, text):
  rewrite(packed, **{'format.json': text})
  check_refused(packed, 'is a zip file but no packed sweep')


def test_a_newer_format(packed):
  text = json.dumps({'format': 'packed sweep of lca', 'version': 2})
  rewrite(packed, **{'format.json': text, 'configs.json': None})
  check_refused(packed, 'has format 2 .*up to 1: update lca')


@pytest.mark.parametrize(
  'name', ['../evil', '/evil', 'files/../times.csv', 'a//b', './a']
)
def test_a_member_outside(packed, name):
  rewrite(packed, **{name: 'text'})
  check_refused(packed, 'could lead out of the folder')


@pytest.mark.parametrize('run', ['..', '../evil', '/evil', ''])
def test_a_run_outside(packed, run):
  with zipfile.ZipFile(packed) as old:
    texts = {name: old.read(name).decode() for name in old.namelist()}
  quoted, new = '"0a"', json.dumps(run)
  names = ('configs', 'environments', 'summaries', 'columns')
  members = {
    f'{n}.json': texts[f'{n}.json'].replace(quoted, new) for n in names
  }
  rewrite(packed, **members)
  check_refused(packed, 'could lead out of the folder')


@pytest.mark.parametrize('place', ['../other/0a', '/0a', 5])
def test_an_index_that_leads_outside(packed, place):
  rewrite(packed, **{'sweep.json': json.dumps({'a/line/0': place})})
  check_refused(packed, 'could lead out of the folder')


def test_only_files_of_runs_are_written(packed, tmp_path, workdir):
  rewrite(
    packed,
    **dict.fromkeys(['verbatim/0a/more.py', 'more.py', '__MACOSX/a', 'b/'], ''),
    **dict.fromkeys(['files/0a/more.py', 'files/0a/b/times.csv'], ''),
    **dict.fromkeys(['files/0z/times.csv', 'files/times.csv'], ''),
  )
  packing.unpack(packed, tmp_path / 'out')
  assert all_files(tmp_path / 'out') == contents(workdir)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'none\.zip'):
    packing.unpack(tmp_path / 'none.zip', tmp_path / 'out')
  with pytest.raises(FileNotFoundError, match=r'none\.zip'):
    with packing.opened(tmp_path / 'none.zip'):
      pass


def test_a_directory_is_opened_as_it_is(tmp_path):
  for folder in (tmp_path, tmp_path / 'not there', tmp_path / 'x.zip'):
    if folder.suffix:
      folder.mkdir()
    assert not packing.is_packed(folder)
    with packing.opened(folder) as opened:
      assert opened == folder
  home = pathlib.Path('~').expanduser()
  with packing.opened('~') as opened:
    assert opened == home


def test_errors_name_the_file_and_no_temporary_folder(packed):
  with pytest.raises(ValueError) as info:
    with packing.opened(packed) as folder:
      raise ValueError(f'{folder}/0a is not finished')
  assert str(info.value) == f'{packed}/0a is not finished'
  assert not folder.exists()


def test_a_workdir_keeps_what_it_has(packed, workdir, tmp_path):
  new = tmp_path / 'new'
  write_run(new, '0a', 1, finish=False)
  (new / 'sweep.json').write_text('{"b/other/0": "0f", "a/line/1": "0a"}')
  before = (new / '0a' / 'metrics.csv').read_bytes()
  assert packing.add(packed, new) == 2
  assert (new / '0a' / 'metrics.csv').read_bytes() == before
  assert not (new / '0a' / 'summary.json').exists()
  for run in ('0b', '0c'):
    for name in FILES:
      assert (new / run / name).read_bytes() == (
        workdir / run / name
      ).read_bytes()
  assert index.names(new) == {
    'a/line/0': '0b',
    'a/line/1': '0a',
    'a/line/2': '0c',
    'b/other/0': '0f',
  }
  assert packing.add(packed, new) == 0
  assert sorted(p.name for p in new.iterdir()) == [
    *('0a', '0b', '0c', 'lock', 'sweep.json', 'tensorboard')
  ]


def test_a_line_of_another_config_is_refused(packed, tmp_path):
  new = tmp_path / 'new'
  with RunDirectory(new / '0f', CONFIG | {'num_rounds': 7}) as directory:
    directory.open()
  (new / 'sweep.json').write_text('{"a/line/7": "0f"}')
  message = f'a/line: num_rounds is 7 in {new}/0f and 1 in {new}/0'
  with pytest.raises(ValueError, match=message):
    packing.add(packed, new)
  assert index.names(new) == {'a/line/7': '0f'}
  assert sorted(p.name for p in new.iterdir()) == ['0f', 'lock', 'sweep.json']
