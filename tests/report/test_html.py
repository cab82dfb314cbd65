"""Pages of runs and sweeps, from files made by hand."""

import dataclasses
import re
import subprocess
import sys

import html_runs
import numpy as np
import processes
import pytest
import sweep_files
from bs4 import BeautifulSoup

from lca.experiment import packing
from lca.experiment.rundir import COLUMNS
from lca.report.html import charts, pages, sweep
from lca.report.html import run as runs
from lca.report.html.sections.forensics import forensics


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / html_runs.NAME.replace('/', '')
  html_runs.write_all_files(path)
  return path


@pytest.fixture(scope='module')
def page(run):
  return parse(pages.write_run(run))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sweep')
  html_runs.write_sweep(workdir)
  return workdir


@pytest.fixture(scope='module')
def index(workdir):
  return sweep.write_sweep(workdir)


def parse(file):
  return BeautifulSoup(file.read_text(encoding='utf-8'), 'html.parser')


def words(element):
  """Returns the text of an element with single spaces."""
  return ' '.join(element.get_text(' ').split())


def alts(page):
  """Returns the description of each chart by the chart's title."""
  return {figure.h3.text: figure.svg['aria-label'] for figure in page('figure')}


def rows(table):
  """Returns the texts of a table's cells, row by row."""
  return [[words(x) for x in row(['th', 'td'])] for row in table('tr')]


def check_alone(page):
  """Checks that a page loads nothing, and that its parts are labelled."""
  for element in page(True):
    for name in ('src', 'href', 'xlink:href', 'srcset', 'action'):
      if value := element.get(name):
        assert re.match(r'#|data:|(\.\./)?[\w-]+(/[\w-]+)?\.html$', value), (
          value
        )
  assert not page(['iframe', 'object', 'embed'])
  text = re.sub(r' xmlns(:xlink)?="[^"]*"', '', str(page))
  assert not re.search(r'https?://|@import|url\((?!#)', text)
  ids = [element['id'] for element in page(True) if element.get('id')]
  assert len(ids) == len(set(ids))
  anchors = [a['href'][1:] for a in page('a') if a['href'].startswith('#')]
  assert {*anchors} <= {*ids}
  references = re.findall(r'(?:url\(|xlink:href=")#([^)"]+)', str(page))
  assert {*references} <= {*ids}
  assert page.html['lang'] == 'en' and page.title.text
  assert len(page('h1')) == 1
  for figure in page('figure'):
    assert figure.figcaption.text.endswith('.')
    assert figure.svg['role'] == 'img'
    assert len(figure.svg['aria-label']) > 20
  for cell in page('th'):
    assert cell['scope'] in ('row', 'col')


@pytest.mark.quick
def test_a_run_s_page_stands_alone(run, page):
  check_alone(page)
  file = run / 'report.html'
  before = file.read_bytes()
  assert len(before) < 300_000
  assert pages.write_run(run) == file
  assert file.read_bytes() == before


def test_a_name_is_text(run, page):
  assert page.h1.text == page.title.text == run.name
  assert '<script>' in run.name and not page('script')


def test_the_header(page):
  status = page.find(class_='status').text
  assert status == 'finished: 3 rounds'
  facts = {d.dt.text: d.dd.text for d in page.find(class_='facts')('div')}
  assert facts == {
    'Rule': 'layerwise_krum, f = 1',
    'Attack': 'label_flipping, 1 of 15 clients a round',
    'Data': 'digits, iid, 20 clients',
    'Model': 'cnn',
    'Rounds': '3',
    'Seed': '0',
  }
  tiles = {x.span.text: x.b.text for x in page.find(class_='tiles')('li')}
  assert tiles == {
    'final test loss': '0.3333',
    'average test loss': '0.6111',  # of 1, 1/2 and 1/3
    'min test loss': '0.3333',
    'average test accuracy': '0.5000',
    'max test accuracy': '0.7500',
  }
  headings = [h2.text for h2 in page('h2')]
  assert headings == [
    *('Training', 'Predictions', 'Clients', 'Forensics', 'Config'),
    'Environment',
  ]
  assert [a.text for a in page.nav('a')] == headings


def test_what_the_charts_say(page):
  said = alts(page)
  assert said['Accuracy'].endswith('0.25 in round 1 to 0.75 in round 3.')
  assert 'train from 2 in round 1 to 0.667 in round 3' in said['Loss']
  assert 'from 4.5 in round 1 to 0.5 in round 3' in said['Seconds']
  # The matrix [[6, 2], [3, 9]].
  assert 'takes class 1 for class 0, 3 times' in said['Confusion matrix']
  assert 'from 0.750 of class 0 to 0.750' in said['Accuracy by class']
  assert '75.0% of them correctly' in page.find(id='predictions').p.text
  assert page.find(id='clients').p.text == (
    '4 clients hold 10 to 40 examples each, 100 together; 1 of them attacks.'
  )
  assert 'A client holds 1 to 2 of 2 classes' in said['Labels']
  # In round 1 the attacker's part and an honest one are of the same length.
  assert ' 16.7% of the aggregate' in page.find(id='forensics').p.text
  assert said['Who was chosen'] == (
    'Heat map of 4 clients by 3 rounds: 33% of the attackers and 50% of the '
    'honest clients had a part in the aggregate.'
  )
  assert f'most in {html_runs.LAYERS[0]}: 33%' in said["The attackers' share"]
  # Both layers' rates are 1 and 0 in round 1, and 0 afterwards.
  assert said['Selection rate'] == (
    'Line chart of selection rates; on average 42% of the honest and 17% of '
    'the attackers.'
  )


def test_tables_of_a_run(page):
  header, *layers = rows(page.find(id='forensics').table)
  assert header[:3] == ['layer', 'rounds with an attacker', "attackers' share"]
  # |aggregate| = |honest mean| = their distance = 1: an angle of 60 degrees.
  # Two honest clients answered, each at the distance 1.
  assert [row[:5] for row in layers] == [
    [html_runs.LAYERS[0], '33%', '33.3%', '60.0', '1.00'],
    [html_runs.LAYERS[1], '0%', '0.0%', '60.0', '1.00'],
  ]
  config = page.find(id='config')
  texts = [words(row) for row in config('tr')]
  assert 'num_rounds 3' in texts and 'local_epochs 5' in texts
  assert config.summary.text == f'{len(texts) - len(config("table"))} keys'
  environment = dict(rows(page.find(id='environment').table)[1:])
  assert environment['jax'] and environment['devices'].endswith(' x cpu')


def test_texts_in_charts_are_texts(page):
  """Texts of charts are no outlines, and take the font of the page."""
  texts = [x.text for x in page.find(id='clients')('text')]
  assert f'{charts.SIGN} attacker' in texts and f'{charts.SIGN}7' in texts
  assert 'font-family' not in str(page('svg'))


def test_an_unfinished_run(tmp_path):
  html_runs.write_run(tmp_path, 'median', [0.25, 0.5, 0.75], finish=False)
  page = parse(pages.write_run(tmp_path))
  status = page.find(class_='status').text
  assert status == 'unfinished: 2 of 3 rounds so far'
  tiles = {x.span.text: x.b.text for x in page.find(class_='tiles')('li')}
  assert tiles['max test accuracy'] == '0.5000'
  absent = words(page.find(id='absent'))
  assert '--config.eval.forensics=True' in absent
  assert 'Predictions' in absent and 'Clients' in absent
  assert not page.find(id='forensics')
  # A line that is being written at this moment.
  with open(tmp_path / 'metrics.csv', 'a') as file:
    file.write('3,0.')
  status = parse(pages.write_run(tmp_path)).find(class_='status').text
  assert status == 'unfinished: 2 of 3 rounds so far'


def test_a_run_without_a_round(tmp_path):
  html_runs.write_run(tmp_path, 'median', [0.5], finish=False)
  page = parse(pages.write_run(tmp_path))
  check_alone(page)
  assert page.find(class_='status').text == 'unfinished: 0 of 1 rounds so far'
  assert not page.find(class_='tiles')
  (tmp_path / 'metrics.csv').unlink()
  assert parse(pages.write_run(tmp_path)) == page


def test_a_run_that_breaks(tmp_path):
  """Losses that are not finite, or huge, and rounds without a test."""
  html_runs.write_run(tmp_path, 'fedavg,constant', [0.5] * 5)
  file = tmp_path / 'metrics.csv'
  header, *lines = file.read_text().splitlines()
  lines[1] = '2,,,,1,0,0'
  lines[2] = '3,1e30,0.1,inf,1,2,7'
  lines[3] = '4,nan,0.1,nan,1,0,0'
  file.write_text('\n'.join([header, *lines]) + '\n')
  page = parse(pages.write_run(tmp_path))
  check_alone(page)
  assert '1e+30' in [x.text for x in page.find(id='training')('text')]
  assert 'in all 2 rejected, 7 nonfinite' in alts(page)['Irregular']


def test_a_backdoor_s_success_is_drawn(tmp_path):
  """In the rounds with a test; there is no chart without such an attack."""
  html_runs.write_run(tmp_path, 'median,badnets', [0.5] * 3)
  file = tmp_path / 'metrics.csv'
  header, *lines = file.read_text().splitlines()
  rates = ['0.25,0.5', ',', '0.75,0.125']
  lines = [f'{line},{rate}' for line, rate in zip(lines, rates, strict=True)]
  header += ',attack_success_rate,backdoor_accuracy'
  file.write_text('\n'.join([header, *lines]) + '\n')
  page = parse(pages.write_run(tmp_path))
  check_alone(page)
  assert alts(page)['Attack'] == (
    'Line chart of attack success: attack success from 0.25 in round 1 to 0.75 '
    'in round 3; true label from 0.5 in round 1 to 0.125 in round 3.'
  )


def test_a_run_without_a_finite_loss(tmp_path):
  html_runs.write_run(tmp_path, 'median', [0.5] * 2, finish=False)
  file = tmp_path / 'metrics.csv'
  header, _ = file.read_text().splitlines()
  file.write_text(f'{header}\n1,,,nan,1,15,7\n')
  page = parse(pages.write_run(tmp_path))
  assert alts(page)['Loss'] == 'Line chart of loss: no finite value.'


def test_times_from_the_middle_of_a_run(tmp_path):
  """A run that was begun by an older version lacks the first times."""
  html_runs.write_run(tmp_path, 'median', [0.5] * 4)
  (tmp_path / 'times.csv').write_text(
    'round,finished,seconds\n'
    '3,2026-01-01T00:00:05Z,4.5\n'
    '4,2026-01-01T00:00:06Z,0.5\n'
  )
  said = alts(parse(pages.write_run(tmp_path)))['Seconds']
  assert said.endswith('from 4.5 in round 3 to 0.5 in round 4.')


def test_large_populations_give_small_pages(tmp_path):
  html_runs.write_run(tmp_path, 'krum', [0.5] * 3)
  counts = np.random.default_rng(0).poisson(3, (2000, 62))
  lines = [
    f'{i},{i % 5 == 0:d},{row.sum()},{",".join(map(str, row))}'
    for i, row in enumerate(counts)
  ]
  header = ['client', 'byzantine', 'examples']
  header += [f'class_{c}' for c in range(62)]
  text = '\n'.join([','.join(header), *lines])
  (tmp_path / 'clients.csv').write_text(text)
  np.savetxt(tmp_path / 'confusion.csv', counts[:62], '%d', ',')
  assert pages.write_run(tmp_path).stat().st_size < 500_000


def test_forensics_of_other_rules_and_of_many_clients(run):
  read = runs.read(run)
  seen = read.forensics
  # A rule like the median reports neither choice nor weights.
  seen = dataclasses.replace(seen, selected=None, weights=None)
  section = forensics(dataclasses.replace(read, forensics=seen))
  assert 'chooses no clients' in section.text
  titles = [part.title for part in section.content]
  assert titles[:2] == ['Angle', 'Distance']
  # All updates are rejected.
  infinite = np.full_like(seen.norms, np.inf)
  seen = dataclasses.replace(seen, norms=infinite)
  section = forensics(dataclasses.replace(read, forensics=seen))
  assert 'Norms' in [part.title for part in section.content]
  # Of 300 clients, each is in one of the rounds, and none attacks. The rule
  # reports its choice alone.
  each = [np.repeat(getattr(read.forensics, k)[:1], 75, 0) for k in FIELDS]
  many = dataclasses.replace(
    seen,
    rounds=np.arange(1, 76),
    clients=np.arange(300).reshape(75, 4),
    **dict(zip(FIELDS, each, strict=True)),
  )
  many = dataclasses.replace(many, byzantine=np.zeros((75, 4), bool))
  section = forensics(dataclasses.replace(read, forensics=many))
  assert 'attackers' not in section.text
  # Two clients of four have a part in the aggregate; one does not answer.
  assert (
    'aria-label="Heat map of 4 clients by 75 rounds: 67% of the honest'
  ) in section.content[0].svg
  assert 'clients of the round, ordered' in section.content[0].svg


FIELDS = (
  *('answered', 'rejected', 'norms', 'distances', 'cos_aggregate'),
  *('cos_honest', 'aggregate_norm', 'honest_norm', 'gap', 'selected'),
)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('clients.csv', 'client,examples\n1,2\n', 'byzantine'),
    ('clients.csv', 'client,byzantine,examples,class_0\n1,0,a,2\n', "'a'"),
    ('confusion.csv', '1,2\n', 'not square'),
    ('times.csv', 'round,seconds\n1\n2,0.5\n', 'does not have 2 entries'),
    ('times.csv', 'round,finished,seconds\n1,x,y\n', "'y'"),
  ],
)
def test_damaged_files_are_named(tmp_path, name, text, message):
  html_runs.write_run(tmp_path, 'krum', [0.5])
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=rf'{name} is damaged .*{message}'):
    pages.write_run(tmp_path)


# Sweeps.


@pytest.mark.quick
def test_the_index_of_a_sweep(workdir, index):
  assert index == workdir / 'report' / 'index.html'
  page = parse(index)
  check_alone(page)
  assert page.h1.text == workdir.name
  assert page.find(class_='status').text == (
    '8 finished, 1 unfinished, 1 not begun'
  )
  header, *table = rows(page.find(class_='sortable'))
  # The options of rule and attack follow from the names.
  assert header == [
    *('run', 'state', 'final accuracy', 'average accuracy', 'max accuracy'),
    *('final loss', 'aggregator', 'attack', 'num_rounds', 'seed'),
  ]
  assert len(table) == 9
  by_name = {row[0]: row[1:] for row in table}
  assert by_name['all/alie x krum/1'] == [
    *('finished', '0.2000', '0.1250', '0.2000', '0.5000'),
    *('krum', 'alie', '2', '1'),
  ]
  assert by_name[f'{html_runs.NAME}/10'] == [
    *('after round 2', '', '', '', '', 'krum', 'none', '3', '10')
  ]


@pytest.mark.parametrize(
  ('f', 'keys'),
  [
    (lambda attackers: attackers, ['attack.num_byzantine']),
    (lambda attackers: 3 - attackers, ['attack.num_byzantine']),
    (lambda attackers: 1, ['attack.num_byzantine']),
  ],
)
def test_f_that_follows_the_attackers_is_no_key_of_its_own(f, keys):
  runs = [
    {'aggregator': 'krum', 'attack.num_byzantine': m, 'aggregator.f': f(m)}
    for m in (1, 2)
  ]
  assert sweep._varying(runs) == keys
  more = [runs[0] | {'aggregator.f': 7}]
  assert sweep._varying(runs + more) == [*keys, 'aggregator.f']


def test_links_of_a_sweep(index):
  links = parse(index).find(class_='sortable')('a')
  assert len(links) == 9
  for link in links:
    page = parse(index.parent / link['href'])
    check_alone(page)
    assert page.h1.text == link.text
    back = page.find(class_='back').a['href']
    target = (index.parent / link['href']).parent / back
    assert target.resolve() == index.resolve()


def test_charts_of_a_sweep(index):
  said = alts(parse(index))
  # In the mean over the seeds krum has 0.15 under attack.
  assert said['num_rounds = 2'] == (
    'Heat map of the accuracies of 2 rules against 2 attacks. The lowest is '
    '0.15, of krum against alie.'
  )
  assert said['alie'].endswith(
    '0.150 of krum, num_rounds = 2 to 0.450 of layerwise_cosine_krum, '
    'num_rounds = 2.'
  )


def test_options_stand_behind_the_names_of_rules_and_attacks(tmp_path):
  runs = {
    'krum': [{'aggregator.f': 1}, {'aggregator.f': 2}],
    'median': [{}],
  }
  for rule, options in runs.items():
    for i, option in enumerate(options):
      for z in (1.0, 2.0):
        html_runs.write_run(
          tmp_path / f'{rule}-{i}-{z}',
          f'{rule},alie',
          [0.5 if rule == 'krum' else 0.25],
          **option,
          **{'attack.z': z},
        )
  page = parse(sweep.write_sweep(tmp_path))
  said = alts(page)
  # One map has both rules and both attacks.
  assert {*said} == {'Final test accuracy', 'z = 1', 'z = 2'}
  texts = [x.text for x in page.find(id='attacks-and-rules')('text')]
  assert {'krum, f = 1', 'krum, f = 2', 'median', 'z = 1'} <= {*texts}
  assert said['z = 2'].endswith('0.250 of median to 0.500 of krum, f = 1.')


def test_pages_of_similar_names(tmp_path):
  for name, last in (('x.1', 0.25), ('x-1', 0.75)):
    html_runs.write_run(tmp_path / name, 'krum', [last])
  index = sweep.write_sweep(tmp_path)
  # They are the same run, with one seed.
  assert '1 seed a line' in parse(index).find(id='curves').figcaption.text
  for link in parse(index).find(class_='sortable')('a'):
    assert parse(index.parent / link['href']).h1.text == link.text


def test_a_packed_sweep(workdir, index, tmp_path):
  file = tmp_path / f'{workdir.name}.zip'
  packing.pack(workdir, file)
  with pytest.raises(ValueError, match=r'give --output=FOLDER'):
    sweep.write_sweep(file)
  packed = sweep.write_sweep(file, tmp_path / 'pages')
  _, *table = rows(parse(packed).find(class_='sortable'))
  assert len(table) == 8
  (page, *_) = (packed.parent / 'runs').iterdir()
  same = index.parent / 'runs' / page.name
  assert page.read_bytes() == same.read_bytes()


def test_keys_that_differ():
  def values(rule, attack, z, f, seed, alpha):
    return {
      'aggregator': rule,
      'attack': attack,
      'attack.z': z,
      'aggregator.f': f,
      'seed': seed,
      'data.alpha': alpha,
      'data.name': 'digits',
    }

  one = values('krum', 'alie', 1.0, 2, 0, 0.1)
  assert sweep._varying([one, one | {'seed': 1}]) == []
  # f follows from the rule's name, z does not follow from the attack's.
  other = values('median', 'alie', 2.0, None, 0, 1.0)
  assert sweep._varying([one, other]) == [
    'aggregator',
    'attack.z',
    'data.alpha',
  ]
  # All that differs follows from the data set.
  mnist = one | {'data.name': 'mnist', 'data.alpha': 1.0, 'attack.z': 2.0}
  assert sweep._varying([one, mnist]) == ['data.name']
  assert sweep._varying([one, other, mnist | {'aggregator': 'median'}]) == [
    'aggregator',
    'attack.z',
    'data.alpha',
    'data.name',
  ]


def test_directories_without_runs_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'holds no run \(no config.json\)'):
    pages.write_run(tmp_path)
  with pytest.raises(ValueError, match='holds no run that has begun'):
    sweep.write_sweep(tmp_path)
  with pytest.raises(OSError, match='No such file'):
    sweep.write_sweep(tmp_path / 'none.zip', tmp_path / 'pages')
  assert not [*tmp_path.iterdir()]


def report(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'lca.report', *flags],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )


def test_the_command_writes_the_page_of_a_run_alone(tmp_path):
  done = report(f'--run={tmp_path}', '--tables')
  assert done.returncode == 1
  assert '--run writes the page of a run alone: --tables goes' in done.stderr


def test_one_command_writes_pages_heat_maps_and_tables(tmp_path):
  for attack, accuracy in ('alie', 0.5), ('mimic', 0.75):
    for rule in ('krum', 'median'):
      config = {'aggregator.name': rule, 'attack.name': attack}
      config |= {'data.alpha': 0.1}
      metrics = {key: [accuracy] for key in COLUMNS[1:]}
      sweep_files.write_run(tmp_path, f'{rule}/{attack}/0', config, metrics)
  done = report(
    f'--sweep={tmp_path}',
    '--heatmap=x:aggregator,y:attack,value:test_accuracy',
    '--table=rows:aggregator,columns:data.alpha,value:test_accuracy,worst-over:attack',
  )
  assert done.returncode == 0, done.stderr
  (table,) = (tmp_path / 'tables').glob('*.tex')
  assert '0.500' in table.read_text()
  assert (
    tmp_path / 'figures' / 'test_accuracy_by_attack_aggregator.pdf'
  ).exists()
  assert (tmp_path / 'report' / 'index.html').exists()


def test_the_command_with_the_section_of_the_guide(run, tmp_path):
  guide = (processes.ROOT / 'docs' / 'reports.md').read_text()
  (recipe,) = re.findall(r'^```python\n(.*?)^```', guide, re.M | re.S)
  (tmp_path / 'my_sections.py').write_text(recipe)
  file = tmp_path / 'new' / 'page.html'
  done = report(
    f'--load={tmp_path}/my_sections.py', f'--run={run}', f'--output={file}'
  )
  assert done.stdout == f'wrote {file}\n', done.stderr
  page = parse(file)
  check_alone(page)
  assert rows(page.find(id='best').table) == [
    ['round', 'test loss'],
    ['3', '0.333'],
  ]
