"""The files in which a data set is published: found, read and verified."""

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
  """Files that make up one data set, as they are published.

  Args:
    url: What their addresses begin with; with a final slash where the file's
      name follows.
    sha256: Hexadecimal checksum of each file, by name.
    instructions: How to get the files by hand; ends every error.
    sizes: Bytes of each file, by name, where that is known.
    links: What follows `url`, by name, where it is not the name.
  """

  url: str
  sha256: Mapping[str, str]
  instructions: str
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  links: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def urls(self) -> dict[str, str]:
    """Each file's address, by file name."""
    return {name: self.url + self.links.get(name, name) for name in self.sha256}

  def find(self, directory: str | Path) -> dict[str, Path]:
    """Locates and verifies all the files in a folder.

    Args:
      directory: The folder that holds them under their published names.

    Returns:
      Each file's path, by file name.

    Raises:
      FileNotFoundError: The folder or a file in it is missing.
      ValueError: A file is damaged, or is not the published one.
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
    """Compares one file's size and checksum with the published ones.

    Args:
      name: Its published name.
      path: Where it lies; a downloaded file may have another name.

    Raises:
      ValueError: It is damaged, or is not the published one.
    """
    size = path.stat().st_size
    expected = self.sizes.get(name, size)
    if size != expected:
      raise ValueError(
        f'{path} is not the published {name}: it has {size} bytes, not '
        f'{expected}\n{self.instructions}'
      )
    with open(path, 'rb') as file:
      found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != self.sha256[name]:
      raise ValueError(
        f'{path} is not the published {name}: its SHA-256 is {found}, not '
        f'{self.sha256[name]}\n{self.instructions}'
      )

  def read(self, name: str, path: Path) -> bytes:
    """Verifies one gzip file and uncompresses it.

    Args:
      name: Its published name.
      path: Where it lies.

    Returns:
      The uncompressed content.

    Raises:
      ValueError: It is damaged, or is not the published one.
    """
    self.verify(name, path)
    return self._decompress(path)

  def _decompress(self, path: Path) -> bytes:
    try:
      return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(
        f'{path} is not a whole gzip file ({error})\n{self.instructions}'
      ) from error

  @contextlib.contextmanager
  def reading(self, *names: str) -> Iterator[None]:
    """Lets an error of what reads the files' content name them.

    Args:
      *names: The published names of those that are read.

    Raises:
      ValueError: The content is not what it must be.
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
    """Asks once, and briefly, whether the files can be downloaded.

    TFDS itself tries again for minutes when there is no internet.

    Raises:
      ConnectionError: They cannot.
    """
    url = next(iter(self.urls.values()))
    with self.downloading(url):
      urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()

  @contextlib.contextmanager
  def downloading(self, what: str) -> Iterator[None]:
    """Lets an error of a download name it and tell how to do without.

    Args:
      what: That is downloaded.

    Raises:
      ConnectionError: It cannot be.
    """
    try:
      yield
    # A page in the file's place, as of Google Drive, is a ValueError to TFDS.
    except (OSError, ValueError, tfds.download.DownloadError) as error:
      raise ConnectionError(
        f'cannot download {what} ({error})\n{self.instructions}'
      ) from error


class GzipContents(Archives):
  """Gzip files whose checksums are those of the uncompressed content.

  A mirror that compresses the files anew, as Linux distributions do, still
  verifies.
  """

  def verify(self, name: str, path: Path) -> None:
    self.read(name, path)

  def read(self, name: str, path: Path) -> bytes:
    content = self._decompress(path)
    found = hashlib.sha256(content).hexdigest()
    if found != self.sha256[name]:
      raise ValueError(
        f'{path} is not the published {name}: the SHA-256 of its uncompressed '
        f'content is {found}, not {self.sha256[name]}\n{self.instructions}'
      )
    return content
