"""Tests of the display of progress on a terminal and in a log."""

import io
import time

import pytest

from lca import progress

pytestmark = pytest.mark.quick


class Terminal(io.StringIO):
  """A text in memory that says that it is a terminal."""

  def isatty(self):
    return True


@pytest.fixture
def at_once(monkeypatch):
  """Shows progress without a delay."""
  monkeypatch.setattr(progress, 'DELAY', 1e-6)
  monkeypatch.setattr(progress, 'EVERY', 1e-6)


def shown(monkeypatch, stream):
  """Trains 100 clients in two steps; returns what was shown of it."""
  monkeypatch.setattr('sys.stderr', stream)
  with progress.bar('round 3/9', 100, 'clients') as bar:
    time.sleep(0.11)
    bar.update(25)
    time.sleep(0.11)
    bar.update(50)
  return stream.getvalue()


def test_a_terminal_s_line_is_replaced(monkeypatch, at_once):
  text = shown(monkeypatch, Terminal())
  assert '\n' not in text
  line, then = text.split('\r')[1], text.split('\r')[2]
  assert line.startswith('round 3/9: 25/100 clients, 00:00 left')
  assert then.startswith('round 3/9: 75/100 clients')
  assert text.endswith('\r')  # the line was cleared


def test_a_log_gets_lines(monkeypatch, at_once):
  text = shown(monkeypatch, io.StringIO())
  assert '\r' not in text
  assert text.splitlines() == [
    'round 3/9: 25/100 clients, 00:00 left',
    'round 3/9: 75/100 clients, 00:00 left',
  ]


def test_short_work_shows_nothing(monkeypatch):
  assert shown(monkeypatch, Terminal()) == ''
  assert shown(monkeypatch, io.StringIO()) == ''


def test_hidden(monkeypatch, at_once):
  monkeypatch.setitem(progress._state, 'hidden', True)
  assert shown(monkeypatch, Terminal()) == ''


def test_the_seconds_of_work_that_cannot_be_counted(monkeypatch, at_once):
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  with progress.seconds('compiling'):
    time.sleep(1.2)
  assert stream.getvalue() == 'compiling ... 1 s\n'
