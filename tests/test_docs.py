"""The pages for readers: their links, and the names and files in them."""

import re

import processes
import pytest
from absl import flags

from configs import common, digits, presets
from lca.experiment import extensions, settings, sweep
from lca.registry import Registry
from lca.report import figures, requests

ROOT = processes.ROOT
PAGES = sorted(
  page
  for folder in ('.', 'docs', 'benchmarks/results')
  for page in (ROOT / folder).glob('*.md')
)


def links(page):
  """Returns the targets of a page's links that stay within the project."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  targets = re.findall(r'\]\(([^)\s]+)\)', text)
  # Of the badges, what only a host of repositories knows.
  outside = ('http', '../../actions')
  return [target for target in targets if not target.startswith(outside)]


def anchors(page):
  """Returns the names that a page's headings get where it is rendered."""
  found = re.findall(r'^#+ (.*)$', page.read_text(), flags=re.M)
  plain = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in found]
  return [heading.replace(' ', '-') for heading in plain]


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
  for target in links(page):
    path, _, anchor = target.partition('#')
    other = (page.parent / path).resolve() if path else page
    assert other.exists(), target
    if anchor:
      assert anchor in anchors(other), target


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_the_presets_of_the_guide_exist():
  text = (ROOT / 'docs' / 'running.md').read_text()
  table = re.search(r'^\| presets \|.*?\n\n', text, re.M | re.S)[0]
  names = [
    name
    for row in table.strip().splitlines()[2:]
    for name in re.findall(r'`([\w.]+)`', row.split('|')[1])
  ]
  assert len(names) > 30
  config = common.base()
  known = (
    presets.aggregators()
    | presets.pre_aggregators()
    | presets.attacks(config)
    | presets.partitions()
    | presets.models()
    | presets.servers()
  )
  templates = [name for name in names if re.search('RULE|ATTACK', name)]
  for name in templates:
    assert name.replace('RULE', 'krum').replace('ATTACK', 'alie') in known
  others = [name for name in names if name not in templates]
  assert {*others} - {*known} == {'non_iid'}  # emnist's and celeba's own


@pytest.fixture
def guide(tmp_path):
  """Returns a folder with the files of the guide on running experiments."""
  text = (ROOT / 'docs' / 'running.md').read_text()
  files = re.findall(r'^```python\n# (\w+\.py)\n(.*?)^```', text, re.M | re.S)
  for name, code in files:
    (tmp_path / name).write_text(code)
  return tmp_path


def test_the_figure_of_the_guide(guide, monkeypatch):
  monkeypatch.setattr(figures, 'FIGURES', Registry('figure'))
  extensions.load_file(guide / 'my_figures.py')
  spec = figures.FIGURES['mine']
  groups = {name.split('/')[0] for name in sweep.load(guide / 'my_sweep.py')}
  assert {*spec.panels.values()} <= groups


def test_the_heat_maps_and_tables_of_the_guide():
  text = (ROOT / 'docs' / 'running.md').read_text()
  commands = re.findall(
    r'^python -m lca\.report (.*--(?:heatmap|table)=.*)', text, re.M
  )
  assert len(commands) == 4
  for command in commands:
    values = flags.FlagValues()
    requests.define_flags(values)
    values(['', *command.split()], known_only=True)
    heat_maps, tables = requests.from_flags(values)
    assert len(heat_maps) + len(tables) == 1


def test_the_sweep_of_the_guide(guide):
  runs = sweep.load(guide / 'my_sweep.py')
  assert len(runs) == 3 * 2 * 2 * 2
  chosen = sweep.choose(runs, only=['.*alie', 'krum'])
  assert len(chosen) == 4
  for name, config in chosen.items():
    f = int(re.search(r'-f(\d)-', name)[1])
    assert config.aggregator.f == config.attack.num_byzantine == f
    settings.from_config(config)


def test_f_follows_the_attackers_until_it_is_set():
  config = digits.get_config('nnm,krum,fang_krum').unlock()
  config.attack.num_byzantine = 3
  assert (config.aggregator.f, config.aggregator.nnm.f) == (3, 3)
  assert config.attack.f == 3
  config.aggregator.f = 2
  config.attack.num_byzantine = 4
  assert (config.aggregator.f, config.aggregator.nnm.f) == (2, 4)
