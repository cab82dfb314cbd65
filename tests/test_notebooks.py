"""Tests of the notebooks as they are stored; nbmake runs them (see colab/)."""

import json
import pathlib
import re
import runpy
import shutil
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / 'colab'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
DRIVE = '/content/drive/MyDrive'
MAX_BYTES = 400_000

each_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def read_cells(path, kind):
  cells = json.loads(path.read_text())['cells']
  return [cell for cell in cells if cell['cell_type'] == kind]


def source(cell):
  return ''.join(cell['source'])


def setup_cell(path):
  return source(read_cells(path, 'code')[0])


def test_there_are_four_notebooks():
  names = [path.stem for path in NOTEBOOKS]
  assert names == ['aggregators', 'legato', 'paper_tables', 'quickstart']


@each_notebook
def test_every_code_cell_shows_its_result(path):
  setup, *others = read_cells(path, 'code')
  assert not setup['outputs']
  for cell in others:
    assert cell['outputs'], source(cell)
    for output in cell['outputs']:
      assert output['output_type'] != 'error', source(cell)
      assert output.get('name') != 'stderr', source(cell)


@each_notebook
def test_every_code_cell_is_introduced(path):
  kinds = [cell['cell_type'] for cell in json.loads(path.read_text())['cells']]
  setup, *others = (i for i, kind in enumerate(kinds) if kind == 'code')
  imports, *others = others
  assert imports == setup + 1
  assert all(kinds[index - 1] == 'markdown' for index in (setup, *others))


@each_notebook
def test_notebook_is_stored_without_traces_of_a_machine(path):
  text = path.read_text()
  assert path.stat().st_size < MAX_BYTES
  assert 'OWNER' not in text and 'github.com' not in text
  assert str(ROOT) not in text
  assert not re.search(r'/(tmp|home|root|usr)/|Users\\', text)
  assert 'Warning' not in text
  notebook = json.loads(text)
  assert notebook['metadata']['kernelspec']['name'] == 'python3'
  for cell in notebook['cells']:
    assert 'execution' not in cell['metadata']  # timestamps


@each_notebook
def test_code_cells_were_run_once_in_order(path):
  counts = [cell['execution_count'] for cell in read_cells(path, 'code')]
  assert counts == list(range(1, len(counts) + 1))


def test_all_notebooks_have_one_setup_cell():
  assert len(set(map(setup_cell, NOTEBOOKS))) == 1
  assert len({source(read_cells(p, 'markdown')[1]) for p in NOTEBOOKS}) == 1


@pytest.fixture
def repository(tmp_path):
  """A folder with the parts of the repository that the set-up cell needs."""
  folder = tmp_path / 'home' / 'lca-main'
  (folder / 'colab').mkdir(parents=True)
  shutil.copy(FOLDER / 'install.py', folder / 'colab')
  (folder / 'requirements.txt').write_text('numpy\n')
  return folder


@pytest.fixture
def run_setup(tmp_path, monkeypatch):
  """Runs the set-up cell in a folder; returns what it puts on sys.path."""

  def run(folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    code = setup_cell(NOTEBOOKS[0])
    assert DRIVE in code
    exec(code.replace(DRIVE, str(tmp_path / 'drive')), {})
    return pathlib.Path(sys.path[0])

  return run


def test_setup_finds_the_repository_from_its_root(repository, run_setup):
  assert run_setup(repository) == repository


def test_setup_finds_the_repository_from_its_folder_colab(
  repository, run_setup
):
  assert run_setup(repository / 'colab') == repository


def test_setup_unpacks_an_uploaded_zip(repository, run_setup, tmp_path):
  content = tmp_path / 'content'
  content.mkdir()
  with zipfile.ZipFile(content / 'lca-main.zip', 'w') as archive:
    for file in repository.rglob('*'):
      archive.write(file, file.relative_to(repository.parent))
  assert run_setup(content) == content / 'lca-main'
  assert run_setup(content) == content / 'lca-main'  # and does so again


def test_setup_finds_the_repository_on_a_mounted_drive(
  repository, run_setup, tmp_path
):
  content = tmp_path / 'content'
  content.mkdir()
  shutil.copytree(repository, tmp_path / 'drive' / 'lca')
  assert run_setup(content) == tmp_path / 'drive' / 'lca'


def test_setup_names_the_three_ways_where_there_is_no_repository(
  run_setup, tmp_path
):
  words = r'(?s)not found.*\(a\).*\(b\).*lca-main\.zip.*\(c\).*Google Drive'
  with pytest.raises(FileNotFoundError, match=words):
    run_setup(tmp_path)


def test_nothing_is_installed_where_nothing_is_missing():
  install = runpy.run_path(str(FOLDER / 'install.py'))
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  assert install['missing'](lines) == []


def test_an_installation_holds_the_installed_jax():
  install = runpy.run_path(str(FOLDER / 'install.py'))
  *_, package, held = install['pip_arguments'](['flax>=0.11'])
  assert package == 'flax>=0.11'
  assert re.fullmatch(r'jax==[\d.]+', held)
  *_, package = install['pip_arguments'](['jax>=1000'])
  assert package == 'jax>=1000'
