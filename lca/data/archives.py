"""The files in which a data set is published: found, read and verified."""

import dataclasses
import gzip
import hashlib
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path

_PROBE_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Archives:
  """Gzip files that make up one data set.

  The checksums are those of the uncompressed content: a mirror that compresses
  the files anew, as Linux distributions do, still verifies.

  Args:
    url: The folder they are downloaded from, with a final slash.
    sha256: Hexadecimal checksum of the uncompressed content, by file name.
    instructions: How to get the files by hand; ends every error.
  """

  url: str
  sha256: Mapping[str, str]
  instructions: str

  @property
  def urls(self) -> dict[str, str]:
    """Each file's address, by file name."""
    return {name: self.url + name for name in self.sha256}

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
      self.read(name, path)
    return paths

  def read(self, name: str, path: Path) -> bytes:
    """Uncompresses one file and verifies its content.

    Args:
      name: Its published name.
      path: Where it lies; a downloaded file may have another name.

    Returns:
      The uncompressed content.

    Raises:
      ValueError: It is damaged, or is not the published one.
    """
    try:
      content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise ValueError(
        f'{path} is not a whole gzip file ({error})\n{self.instructions}'
      ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != self.sha256[name]:
      raise ValueError(
        f'{path} is not the published {name}: the SHA-256 of its uncompressed '
        f'content is {found}, not {self.sha256[name]}\n{self.instructions}'
      )
    return content

  def probe(self) -> None:
    """Asks once, and briefly, whether the files can be downloaded.

    TFDS itself tries again for minutes when there is no internet.

    Raises:
      ConnectionError: They cannot.
    """
    url = next(iter(self.urls.values()))
    try:
      urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()
    except OSError as error:
      raise ConnectionError(
        f'cannot download {url} ({error})\n{self.instructions}'
      ) from error
