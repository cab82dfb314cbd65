"""Finds, verifies and reads the files in which data sets are published."""

import contextlib
import dataclasses
import gzip
import hashlib
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

_PROBE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Archives:
  """The published files of one data set, and where to download them.

  Attributes:
    url: the common beginning of the files' addresses. A file's address is `url`
      followed by its entry in `links`, or by its name if it has no entry.
    sha256: hexadecimal checksum of each file, by file name.
    instructions: how to get the files by hand; every error message ends with
      this text.
    sizes: size of each file in bytes, by file name, for files whose size is
      known.
    links: the ends of the addresses that do not end with the file's name, by
      file name.
  """

  url: str
  sha256: Mapping[str, str]
  instructions: str
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  links: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def urls(self) -> dict[str, str]:
    """The address of each file, by file name."""
    return {name: self.url + self.links.get(name, name) for name in self.sha256}

  def find(self, directory: str | Path) -> dict[str, Path]:
    """Finds and verifies all files of the data set in a folder.

    Args:
      directory: the folder that holds the files under their published names.

    Returns:
      The path of each file, by file name.

    Raises:
      FileNotFoundError: the folder or a file in it is missing.
      ValueError: a file is damaged, or is not the published one.
    """
    directory = Path(directory).expanduser()
    paths = {name: directory / name for name in self.sha256}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
      raise FileNotFoundError(
        f'no such file: {", ".join(missing)}\n{self.instructions}'
      )
    for name, path in paths.items():
      self.verify(name, path)
    return paths

  def verify(self, name: str, path: Path) -> None:
    """Compares the size and checksum of one file with the published ones.

    Args:
      name: the published name of the file.
      path: the path of the file, which may have another name after a download.

    Raises:
      ValueError: the file is damaged, or is not the published one.
    """
    size = path.stat().st_size
    expected = self.sizes.get(name, size)
    if size != expected:
      raise ValueError(
        f'{path} is not the published {name}: it has {size} bytes, not '
        f'{expected}\n{self.instructions}'
      )
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != self.sha256[name]:
      raise ValueError(
        f'{path} is not the published {name}: its SHA-256 is {digest}, not '
        f'{self.sha256[name]}\n{self.instructions}'
      )

  def read(self, name: str, path: Path) -> bytes:
    """Verifies one gzip file and uncompresses it.

    Args:
      name: the published name of the file.
      path: the path of the file.

    Returns:
      The uncompressed content.

    Raises:
      ValueError: the file is damaged, or is not the published one.
    """
    self.verify(name, path)
    return self._decompress(path)

  def _decompress(self, path: Path) -> bytes:
    try:
      return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(
        f'{path} is not a complete gzip file ({error})\n{self.instructions}'
      ) from error

  @contextlib.contextmanager
  def reading(self, *names: str) -> Iterator[None]:
    """Adds the names of files to errors that occur while reading them.

    The context is for code that parses the content of files. Errors of gzip,
    tar, zip and of the parser become ValueErrors that begin with the files'
    names.

    Args:
      *names: the published names of the files that are read.

    Raises:
      ValueError: the wrapped code failed on the content.
    """
    try:
      yield
    except (
      EOFError,
      KeyError,
      NotImplementedError,
      OSError,
      ValueError,
      tarfile.TarError,
      zipfile.BadZipFile,
      zlib.error,
    ) as error:
      raise ValueError(
        f'{" and ".join(names)}: {error}\n{self.instructions}'
      ) from error

  def probe(self) -> None:
    """Requests the first file once, to fail quickly if there is no internet.

    Without this request a user waits for minutes, because TFDS repeats a failed
    download many times.

    Raises:
      ConnectionError: the file cannot be downloaded.
    """
    url = next(iter(self.urls.values()))
    with self.downloading(url):
      urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()

  @contextlib.contextmanager
  def downloading(self, what: str) -> Iterator[None]:
    """Adds an address and the instructions to errors of a download.

    Args:
      what: the address or addresses that the wrapped code downloads.

    Raises:
      ConnectionError: the wrapped code failed to download them.
    """
    try:
      yield
    # TFDS raises a ValueError if a server, such as Google Drive, sends a web
    # page in place of the file.
    except (OSError, ValueError, tfds.download.DownloadError) as error:
      raise ConnectionError(
        f'cannot download {what} ({error})\n{self.instructions}'
      ) from error


class GzipContents(Archives):
  """Gzip files whose checksums refer to their uncompressed content.

  Files that a mirror has compressed again, as Linux distributions do, therefore
  pass the verification.
  """

  def verify(self, name: str, path: Path) -> None:
    self.read(name, path)

  def read(self, name: str, path: Path) -> bytes:
    content = self._decompress(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != self.sha256[name]:
      raise ValueError(
        f'{path} is not the published {name}: the SHA-256 of its uncompressed '
        f'content is {digest}, not {self.sha256[name]}\n{self.instructions}'
      )
    return content
