"""An HTTP server for tests of downloads."""

import functools
import http.server
import threading

import pytest


@pytest.fixture
def server(archive_dir, monkeypatch):
  """Serves the folder of archives over HTTP; yields its address."""
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=archive_dir
  )
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    thread.join()
