"""Pages of a run and of a sweep in Chromium, without a screen."""

import base64
import json
import pathlib
import shutil

import html_runs
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from lca.report.html import pages, sweep

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'google-chrome'))), None
)
DRIVER = shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
  not (BROWSER and DRIVER),
  reason="needs Chromium and its driver, such as Debian's chromium-driver",
)


@pytest.fixture(scope='module')
def browser():
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for flag in (
    *('headless=new', 'no-sandbox', 'disable-dev-shm-usage'),
    'window-size=1200,900',
  ):
    options.add_argument(f'--{flag}')
  logs = {'browser': 'ALL', 'performance': 'ALL'}
  options.set_capability('goog:loggingPrefs', logs)
  driver = webdriver.Chrome(options=options, service=Service(DRIVER))
  yield driver
  driver.quit()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The pages of a run and of a sweep."""
  folder = tmp_path_factory.mktemp('pages')
  html_runs.write_all_files(folder / 'run')
  html_runs.write_sweep(folder / 'sweep')
  return {
    'run': pages.write_run(folder / 'run'),
    'sweep': sweep.write_sweep(folder / 'sweep'),
  }


@pytest.fixture(params=['run', 'sweep'])
def page(request, browser, files):
  """The file of a page, which is open in the browser."""
  browser.get_log('browser'), browser.get_log('performance')
  browser.get(files[request.param].as_uri())
  return files[request.param]


def width(browser, pixels):
  """Sets the width of the browser's view; None takes that of the window."""
  if pixels is None:
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    return
  size = {'width': pixels, 'height': 800, 'deviceScaleFactor': 1}
  browser.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride', size | {'mobile': False}
  )


def test_pages_load_nothing_else_and_report_no_error(browser, page):
  events = [json.loads(x['message']) for x in browser.get_log('performance')]
  requests = [
    event['message']['params']['request']['url']
    for event in events
    if event['message']['method'] == 'Network.requestWillBeSent'
  ]
  loaded = {url for url in requests if not url.startswith('data:')}
  assert loaded == {page.as_uri()}
  assert not browser.get_log('browser')


@pytest.mark.parametrize('pixels', [1200, 360])
def test_all_of_a_page_is_seen(browser, page, pixels):
  width(browser, pixels)
  try:
    across = browser.execute_script(
      'return document.documentElement.scrollWidth'
    )
    assert across <= pixels
    headings = browser.find_elements(By.CSS_SELECTOR, 'h1, h2, figure h3')
    assert len(headings) > 4
    assert all(heading.is_displayed() for heading in headings)
    sizes = browser.execute_script(
      "return [...document.querySelectorAll('figure svg, svg image')]"
      '.map((x) => x.getBoundingClientRect())'
      '.map((box) => [box.width, box.height])'
    )
    assert len(sizes) >= 3
    assert min(map(min, sizes)) > 5
    # The sections' own boxes scroll; nothing sticks out of them.
    right = browser.execute_script(
      "return Math.max(...[...document.querySelectorAll('main *')]"
      ".filter((x) => !x.closest('.scroll'))"
      '.map((x) => x.getBoundingClientRect().right))'
    )
    assert right <= pixels
  finally:
    width(browser, None)


def test_pages_can_be_printed(browser, page):
  printed = browser.execute_cdp_cmd('Page.printToPDF', {})
  content = base64.b64decode(printed['data'])
  assert content.startswith(b'%PDF') and len(content) > 10_000


def test_the_config_is_printed(browser, files):
  """Opens on paper the tables that are folded in on the screen."""
  browser.get(files['run'].as_uri())
  height = "return document.querySelector('details').offsetHeight"
  on_screen = browser.execute_script(height)
  for media, grows in (('print', True), ('', False)):
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'media': media})
    assert (browser.execute_script(height) > 3 * on_screen) == grows


@pytest.fixture
def table(browser, files):
  """Returns a function that gives the texts of a column that are shown."""
  browser.get(files['sweep'].as_uri())

  def column(number):
    cells = browser.find_elements(
      By.CSS_SELECTOR, f'.sortable tbody tr > :nth-child({number})'
    )
    return [cell.text for cell in cells if cell.is_displayed()]

  return column


def header(browser, title):
  for button in browser.find_elements(By.CSS_SELECTOR, '.sortable button'):
    if button.text == title:
      return button
  raise AssertionError(f'no column {title}')


def test_a_click_sorts(browser, table):
  # By number: 10 is the last seed, not the second.
  header(browser, 'seed').click()
  assert table(10) == ['0'] * 4 + ['1'] * 4 + ['10']
  header(browser, 'seed').send_keys('\ue007')  # the key Enter
  assert table(10) == ['10'] + ['1'] * 4 + ['0'] * 4
  header(browser, 'final accuracy').click()
  values = table(3)
  # The run that is not finished has no accuracy, and stays at the end.
  assert values[-1] == ''
  numbers = list(map(float, values[:-1]))
  assert numbers == sorted([0.1, 0.2, 0.4, 0.5, 0.5, 0.6, 0.8, 0.9])
  header(browser, 'final accuracy').click()
  assert [float(x) for x in table(3)[:-1]] == numbers[::-1]
  states = browser.find_elements(By.CSS_SELECTOR, '.sortable [aria-sort]')
  assert [x.get_attribute('aria-sort') for x in states] == ['descending']
  header(browser, 'attack').click()
  assert table(8) == ['alie'] * 4 + ['none'] * 5


def test_words_filter(browser, table):
  field = browser.find_element(By.CSS_SELECTOR, '.tools input')
  field.send_keys('ALIE layerwise')
  assert table(1) == [
    f'all/alie x layerwise_cosine_krum/{seed}' for seed in (0, 1)
  ]
  assert '2 of 9 runs' in browser.find_element(By.CLASS_NAME, 'tools').text
  field.clear()
  field.send_keys('nothing like this')
  assert table(1) == []


def test_links_lead_to_pages_and_back(browser, files):
  browser.get(files['sweep'].as_uri())
  links = browser.find_elements(By.CSS_SELECTOR, '.sortable a')
  addresses = [link.get_attribute('href') for link in links]
  assert len(addresses) == 9
  for address in addresses:
    assert pathlib.Path(address.removeprefix('file://')).is_file()
  name = links[0].text
  links[0].click()
  assert browser.find_element(By.TAG_NAME, 'h1').text == name
  browser.find_element(By.CSS_SELECTOR, '.back a').click()
  assert browser.current_url == files['sweep'].as_uri()
