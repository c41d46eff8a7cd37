"""Reads and writes objects of Google Cloud Storage, by gs://BUCKET/NAME.

An object appears whole or not at all, and every write gives it a new number,
its generation. A write or a deletion may depend on the generation that is
there, so that of two writers one loses. There are no folders: a path is a
folder if objects exist whose names begin with it and a slash.

A server that does not answer, or answers that it is busy (429, 5xx), is asked
again for `PATIENCE_SECS`. Only `runtime.files` and the modules that it is made
of call this one. The package of the service is imported at the first use.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import os
import re
import secrets
import time
from typing import Any, BinaryIO

from bert_jax.runtime import errors

SCHEME = "gs://"
PATIENCE_SECS = 600.0
_FIRST_SECS = 60.0  # for the first request of a process
_TELL_SECS = 30.0  # between two warnings of requests that fail
_EXTRA = ("google.cloud.storage", "gcsfs")
_log = logging.getLogger(__name__)

# The message in the JSON body of an error of Google Cloud Storage.
_MESSAGE = re.compile(r'"message": *"([^"]*)"')
_THREADS = 16  # requests at the same time, of folders
_FIRST_BYTES = 1 << 18  # of an object, by the first request
_MOST_BYTES = 8 << 20  # by later requests, if it is read on

# Called with the path of an object that is about to be written or deleted.
before_writes: list[Callable[[str], None]] = []

# What a missing bucket, missing rights and missing credentials need.
_CREATE = "create it with gcloud storage buckets create gs://{bucket}"
_RIGHTS = (
  "give the account of this machine the role roles/storage.objectUser and "
  "roles/storage.legacyBucketReader on the bucket: gcloud storage buckets "
  "add-iam-policy-binding gs://{bucket} --member=serviceAccount:ACCOUNT "
  "--role=roles/storage.objectUser"
)
_LOG_IN = (
  "run gcloud auth application-default login, or on a machine of Google Cloud "
  "give it a service account"
)


class BucketError(errors.UserError):
  """A bucket cannot be used: it does not exist, or rights are missing."""


class RightsError(PermissionError):
  """The account of this machine may not do what was asked for."""


class ServiceError(OSError):
  """The service did not answer, or failed, for `PATIENCE_SECS`."""


class ChangedError(OSError):
  """An object has another generation than a write or deletion depends on."""


@dataclasses.dataclass(frozen=True)
class Object:
  """The metadata of an object in a bucket.

  Attributes:
    path: its path, gs://BUCKET/NAME.
    size: its size in bytes.
    generation: the number of the write that it is from.
    updated: when it was written, in seconds, by the clock of the server.
    crc32c: its checksum, as text.
  """

  path: str
  size: int
  generation: int
  updated: float
  crc32c: str


def is_bucket_path(path: Any) -> bool:
  """Returns whether a path lies in a bucket."""
  return isinstance(path, str) and path.startswith(SCHEME)


def split(path: str) -> tuple[str, str]:
  """Returns the bucket and the name of gs://BUCKET/NAME."""
  bucket, _, name = path.removeprefix(SCHEME).partition("/")
  return bucket, name


def normal(path: str) -> str:
  """Returns a path without empty parts, "." and "..", and no slash at its end.

  Example:
    >>> normal("gs://b/runs//a/../c/")
    'gs://b/runs/c'
  """
  bucket, name = split(path)
  parts: list[str] = []
  for part in name.split("/"):
    if part == "..":
      del parts[-1:]
    elif part not in ("", "."):
      parts.append(part)
  return SCHEME + "/".join([bucket, *parts])


def missing_extra() -> str:
  """Returns which package for buckets is not installed, or ""."""
  for name in _EXTRA:
    try:
      if importlib.util.find_spec(name) is None:
        return name
    except ModuleNotFoundError:  # of a parent package
      return name
  return ""


def problem(name: str, path: str) -> str:
  """Returns why a path of a bucket cannot be used, without any request, or "".

  Args:
    name: the flag or key that contains the path, such as "--workdir".
    path: the path.
  """
  if missing := missing_extra():
    return (
      f"{name}={path}: paths of buckets need the package {missing}, which is "
      "not installed: pip install 'bert_jax[gcs]'"
    )
  bucket, _ = split(path)
  if not bucket or any(c in bucket for c in " ?*[]"):
    return f"{name}={path} names no bucket; give {SCHEME}BUCKET/FOLDER"
  return ""


# --- requests ----------------------------------------------------------------


def prepare_libraries() -> None:
  """Sets how libraries behave that read and write buckets by themselves.

  Orbax does so by gcsfs, which repeats a failed request for half a minute; it
  is told to be as patient as this module.
  """
  import gcsfs
  from gcsfs import retry

  _keep_no_lists()
  system: Any = gcsfs.GCSFileSystem
  if inner := getattr(system._request, "__wrapped__", None):
    tries = 5 + int(PATIENCE_SECS / 32)  # they wait 1, 2, 4, ..., 32, 32 s
    system._request = retry.retry_request(retries=tries)(inner)


def _keep_no_lists() -> None:
  """Has fsspec not remember lists of objects, which other processes change."""
  import fsspec

  kept = fsspec.config.conf.setdefault("gcs", {})
  kept.setdefault("use_listings_cache", False)
  fsspec.config.conf.setdefault("gs", kept)
  # It logs a traceback for each object that it copies in place of moving it.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@functools.lru_cache(maxsize=1)
def _client_of(pid: int) -> Any:
  del pid  # a connection must not be shared with a parent process
  from google.auth import exceptions
  from google.cloud import storage
  from requests import adapters

  _keep_no_lists()
  try:
    client = storage.Client(project=None)
  except exceptions.DefaultCredentialsError as error:
    raise BucketError(
      f"there are no credentials for {SCHEME} paths: {_LOG_IN}"
    ) from error
  for scheme in ("http://", "https://"):
    adapter = adapters.HTTPAdapter(pool_maxsize=2 * _THREADS)
    client._http.mount(scheme, adapter)
  return client


def _bucket(name: str) -> Any:
  return _client_of(os.getpid()).bucket(name)


def _blob(path: str, generation: int | None = None) -> Any:
  bucket, name = split(path)
  return _bucket(bucket).blob(name, generation=generation)


@functools.lru_cache(maxsize=64)
def _retry(secs: float = PATIENCE_SECS, written: str = "") -> Any:
  """Returns how requests are repeated: those that no repetition can harm.

  Args:
    secs: for how long.
    written: the path that the request writes, if it does: each repetition is
      announced to `before_writes` as the first request is.
  """
  from google.api_core import retry as api
  from google.cloud.storage import retry

  return api.Retry(
    predicate=retry.DEFAULT_RETRY._predicate,
    initial=0.5,
    maximum=20,
    timeout=secs,
    on_error=functools.partial(_after_failure, written),
  )


_told = [0.0]  # when a failure was told last


def _after_failure(written: str, error: Exception) -> None:
  """Says at times that requests are repeated; see `_retry`."""
  if written:
    _tell(written)
  now = time.monotonic()
  if not _told[0] or now - _told[0] > _TELL_SECS:
    _told[0] = now
    _log.warning(
      "the storage service fails (%s); trying again for up to %.0f s",
      errors.first_line(error),
      PATIENCE_SECS,
    )


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Turns errors of the service into OSErrors that name a path.

  Raises:
    FileNotFoundError: there is no such object.
    BucketError: there is no such bucket, or no credentials.
    RightsError: the account has no right to do it.
    ChangedError: the object has another generation.
    ServiceError: the service does not answer.
    OSError: the content arrives damaged.
  """
  from google.api_core import exceptions as api
  from google.auth import exceptions as auth
  from google.cloud.storage import exceptions as storage
  import requests

  bucket, _ = split(path)
  try:
    yield
  except api.NotFound as error:
    if "bucket does not exist" in str(error).lower():
      raise BucketError(
        f"{path}: there is no bucket {bucket}; " + _CREATE.format(bucket=bucket)
      ) from error
    raise FileNotFoundError(2, "No such object", path) from error
  except (api.Forbidden, api.Unauthorized) as error:
    raise RightsError(
      f"{path}: the bucket refuses the request "
      f"({_said(error)}); {_RIGHTS.format(bucket=bucket)}"
    ) from error
  except api.PreconditionFailed as error:
    raise ChangedError(f"{path}: another process has written it") from error
  except auth.RefreshError as error:
    raise BucketError(
      f"{path}: the credentials of this machine are not valid "
      f"({errors.first_line(error)}): {_LOG_IN}"
    ) from error
  except storage.DataCorruption as error:
    raise OSError(
      f"{path} arrives damaged: {errors.first_line(error)}"
    ) from error
  except (
    api.GoogleAPIError,
    auth.TransportError,
    requests.RequestException,
  ) as error:
    raise ServiceError(
      f"{path}: the storage service fails: {errors.first_line(error)}"
    ) from error


def _said(error: Exception) -> str:
  """Returns what the service says of an error, without the whole request."""
  text = errors.first_line(error)
  found = _MESSAGE.search(text)
  return f"{getattr(error, 'code', '')} {found[1]}".strip() if found else text


def _object(blob: Any) -> Object:
  return Object(
    path=f"{SCHEME}{blob.bucket.name}/{blob.name}",
    size=blob.size or 0,
    generation=int(blob.generation),
    updated=blob.updated.timestamp() if blob.updated else 0.0,
    crc32c=blob.crc32c or "",
  )


def find(path: str) -> Object | None:
  """Returns the metadata of an object; None if it does not exist."""
  blob = _blob(path)
  if not blob.name:
    return None
  try:
    with naming(path):
      blob.reload(retry=_retry())
  except FileNotFoundError:
    check_bucket(path)  # of a missing bucket the service says the same
    return None
  return _object(blob)


def check_bucket(path: str) -> None:
  """Raises BucketError or PermissionError unless a bucket can be listed.

  Args:
    path: any path in the bucket, which is asked for once.
  """
  _check_bucket(split(path)[0])


@functools.cache
def _check_bucket(bucket: str) -> None:
  path = SCHEME + bucket
  try:
    with naming(path):
      blobs = _bucket(bucket).list_blobs(
        max_results=1, retry=_retry(_FIRST_SECS)
      )
      next(iter(blobs), None)
  except FileNotFoundError as error:
    raise BucketError(
      f"{path}: there is no bucket {bucket}; " + _CREATE.format(bucket=bucket)
    ) from error


def check_writable(path: str) -> None:
  """Raises an error that says what to do unless objects can be written.

  Args:
    path: a file or folder of the bucket, next to which an object is written and
      deleted.
  """
  check_bucket(path)
  probe = f"{path.rstrip('/')}.{secrets.token_hex(8)}.tmp"
  put(probe, b"")
  delete(probe)


def server_time(path: str) -> float:
  """Returns the time by the clock of the server, in seconds.

  Args:
    path: a path next to which an object may be written and deleted.
  """
  probe = f"{path}.{secrets.token_hex(8)}.tmp"
  written = put(probe, b"")
  delete(probe)
  return written.updated


def read(path: str, generation: int | None = None) -> bytes:
  """Returns the content of an object.

  Raises:
    FileNotFoundError: there is no such object.
  """
  with naming(path):
    return _blob(path, generation).download_as_bytes(retry=_retry())


def open_object(path: str) -> Any:
  """Opens an object for reading, at any place; a later write does not show.

  Raises:
    FileNotFoundError: there is no such object.
  """
  found = find(path)
  if found is None:
    raise FileNotFoundError(2, "No such object", path)
  if found.size <= _FIRST_BYTES:
    return io.BytesIO(read(path, found.generation))
  return io.BufferedReader(_Reader(found), 1 << 16)


class _Reader(io.RawIOBase):
  """Reads an object in blocks, which are larger where it is read on."""

  def __init__(self, found: Object):
    self._object = found
    self._at = self._start = 0  # the place, and the start of the block
    self._block = b""
    self._size = _FIRST_BYTES

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    end = self._start + len(self._block)
    if not self._start <= self._at < end:
      if self._at >= self._object.size:
        return 0
      if self._at == end and end:
        self._size = min(2 * self._size, _MOST_BYTES)
      else:
        self._size = _FIRST_BYTES
      self._start, self._block = self._at, b""
      stop = min(self._at + self._size, self._object.size)
      path = self._object.path
      with naming(path):
        blob = _blob(path, self._object.generation)
        self._block = blob.download_as_bytes(
          start=self._at, end=stop - 1, retry=_retry(), checksum=None
        )
    first = self._at - self._start
    data = self._block[first : first + len(buffer)]
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    base = (0, self._at, self._object.size)[whence]
    self._at = max(base + offset, 0)
    return self._at

  def tell(self) -> int:
    return self._at


def download(found: Object, target: str) -> None:
  """Copies an object to a file, and compares its checksum.

  Args:
    found: the object.
    target: the local path, which is overwritten.
  """
  with naming(found.path):
    blob = _blob(found.path, found.generation)
    blob.download_to_filename(target, retry=_retry(), checksum="crc32c")


def put(
  path: str, content: bytes | BinaryIO, generation: int | None = None
) -> Object:
  """Writes an object.

  Args:
    path: its path.
    content: its content, or a file whose content is read from its start.
    generation: the generation that must be there; 0 = none may be there; None =
      whatever is there is replaced.

  Raises:
    ChangedError: there is another generation.
  """
  _tell(path)
  file = io.BytesIO(content) if isinstance(content, bytes) else content
  size = file.seek(0, io.SEEK_END)
  blob = _blob(path)
  # A repeated request may find what its first try has written.
  mark = secrets.token_hex(16)
  blob.metadata = {"write": mark}
  try:
    with naming(path):
      blob.upload_from_file(
        file,
        rewind=True,
        size=size,
        if_generation_match=generation,
        retry=_retry(written=path),
        checksum="crc32c",
      )
  except ChangedError:
    there = _blob(path)
    with naming(path), contextlib.suppress(FileNotFoundError):
      there.reload(retry=_retry())
    if (there.metadata or {}).get("write") != mark:
      raise
    blob = there
  except FileNotFoundError:
    check_bucket(path)
    raise
  return _object(blob)


def _tell(path: str) -> None:
  for function in before_writes:
    function(path)


def delete(path: str, generation: int | None = None) -> None:
  """Deletes an object, if it exists.

  Args:
    path: its path.
    generation: the generation that must be there; None = any.

  Raises:
    ChangedError: there is another generation.
  """
  _tell(path)
  with contextlib.suppress(FileNotFoundError), naming(path):
    _blob(path).delete(
      if_generation_match=generation, retry=_retry(written=path)
    )


# --- folders -----------------------------------------------------------------


def objects(folder: str) -> list[Object]:
  """Returns all objects below a folder, also in its folders, by name."""
  bucket, name = split(normal(folder))
  prefix = f"{name}/" if name else ""
  with _listing(folder):
    blobs = _bucket(bucket).list_blobs(prefix=prefix, retry=_retry())
    return [_object(b) for b in blobs if not b.name.endswith("/")]


@contextlib.contextmanager
def _listing(folder: str) -> Iterator[None]:
  """Names a folder in errors; a list only fails if there is no bucket."""
  try:
    with naming(folder):
      yield
  except FileNotFoundError:
    check_bucket(folder)
    raise


def is_folder(path: str) -> bool:
  """Returns whether objects exist below a path."""
  bucket, name = split(normal(path))
  if not name:
    check_bucket(path)
    return True
  with _listing(path):
    blobs = _bucket(bucket).list_blobs(
      prefix=f"{name}/", max_results=1, retry=_retry()
    )
    return any(True for _ in blobs)


def children(folder: str) -> tuple[list[Object], list[str]]:
  """Returns the objects right in a folder, and the names of its folders."""
  bucket, name = split(normal(folder))
  prefix = f"{name}/" if name else ""
  with _listing(folder):
    blobs = _bucket(bucket).list_blobs(
      prefix=prefix, delimiter="/", retry=_retry()
    )
    found = [_object(b) for b in blobs if b.name != prefix]
    inner = sorted(p.removeprefix(prefix).rstrip("/") for p in blobs.prefixes)
  return found, inner


def in_threads(function: Any, items: Iterable[Any]) -> list[Any]:
  """Returns a function's values for some items, of a few requests at a time."""
  items = list(items)
  if len(items) < 2:
    return list(map(function, items))
  with futures.ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
    return list(pool.map(function, items))


def delete_all(found: Iterable[Object]) -> None:
  """Deletes objects."""
  in_threads(lambda one: delete(one.path), found)


def copy(found: Object, target: str) -> None:
  """Copies an object to another path, in the service."""
  _tell(target)
  with naming(found.path):
    source, there = _blob(found.path, found.generation), _blob(target)
    token: Any = None
    while True:
      token, _, _ = there.rewrite(
        source, token=token, retry=_retry(written=target)
      )
      if token is None:
        return
