"""The pages for readers: their links, and the names and files in them."""

import re

import processes
import pytest

from configs import common, digits, presets
from lca.experiment import settings, sweep

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


def test_the_sweep_of_the_guide(tmp_path):
  text = (ROOT / 'docs' / 'running.md').read_text()
  (code,) = re.findall(
    r'^```python\n# my_sweep.py\n(.*?)^```', text, re.M | re.S
  )
  (tmp_path / 'my_sweep.py').write_text(code)
  runs = sweep.load(tmp_path / 'my_sweep.py')
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
