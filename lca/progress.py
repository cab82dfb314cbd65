"""Shows how far long work is: on a terminal a line that is replaced, in a log
a new line every now and then.

Nothing is shown of work that ends within some seconds. All of it goes to
standard error.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

DELAY = 3.0
"""Seconds until a terminal shows how far some work is."""

EVERY = 30.0
"""Seconds between two lines in a log, and before the first one."""

_state = {'hidden': False}


class _Lines(tqdm):
  """Prints each state as a line of its own, for outputs that keep all text."""

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Prints the current state; there is nothing to clear (`msg=''`)."""
    if msg is None:
      print(self, file=self.fp, flush=True)


def hide() -> None:
  """Shows nothing from now on, in this process."""
  _state['hidden'] = True


def hidden() -> bool:
  """Returns True once `hide` was called."""
  return _state['hidden']


def on_terminal() -> bool:
  """Returns True if progress is shown, and as a line that is replaced."""
  return sys.stderr.isatty() and not hidden()


def bar(what: str, total: int | None = None, unit: str = '') -> tqdm:
  """Starts to show how much of some work is done.

  Args:
    what: names the work, such as `'round 3/100'`.
    total: number of things to do; None shows the seconds that have passed.
    unit: names the things, such as `'clients'`.

  Returns:
    A context with a method `update(n)`, which is called after `n` more things.
  """
  counted = '{desc}: {n_fmt}/{total_fmt} {unit}, {remaining} left'
  terminal = sys.stderr.isatty()
  return (tqdm if terminal else _Lines)(
    desc=what,
    total=total,
    unit=unit,
    bar_format='{desc} ... {elapsed_s:.0f} s' if total is None else counted,
    delay=DELAY if terminal else EVERY,
    mininterval=0.1 if terminal else EVERY,
    miniters=0,  # look at the clock in each update
    smoothing=0,  # the time left follows from the mean speed
    leave=False,
    disable=hidden(),
    file=sys.stderr,
  )


@contextlib.contextmanager
def seconds(what: str) -> Iterator[None]:
  """Shows the seconds that have passed while the context lasts.

  Args:
    what: names the work, such as `'compiling'`.
  """
  done = threading.Event()
  with bar(what) as shown:

    def tick():
      while not done.wait(1):
        shown.update(0)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
