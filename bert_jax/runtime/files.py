"""Writes files and folders atomically.

  with files.writing("evaluation.json", "w") as f:
    json.dump(values, f)

A reader, or a run after a kill, finds either the old content or all of the new
content, never a part of it. The content goes to a temporary file in the folder
of the target, which is renamed to the target at the end. A symbolic link stays,
and its target is replaced. A device or a FIFO is written directly.

The temporary name is `.NAME.RANDOM.tmp`. Nobody can guess it and put a link
there in advance. The writer holds a lock on the file. A lock ends with its
process, so the next writer of the same target finds out which temporary files
were left by killed writers, and deletes them.

This module is the only one that opens paths that a user gives. A path is one
of the file system, or gs://BUCKET/NAME. In a bucket an object appears whole, so
that nothing is renamed there: content is collected in a local file, which is
uploaded at the end. What reads at random places gets a local copy (`local`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import errno
import fcntl
import fnmatch
import glob as local_glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from typing import Any, cast

from bert_jax.runtime import bucket_appends
from bert_jax.runtime import bucket_cache
from bert_jax.runtime import buckets
from bert_jax.runtime import errors

_RANDOM_BYTES = 8  # in a temporary name
# Bytes of NAME in a temporary name. They are limited so that the temporary name
# is not too long for the file system if NAME is not.
_NAME_BYTES = 64
_MAX_LINKS = 40  # the limit of the kernel
_TRIES = 100  # how many names are tried until one is locked
_SCHEME = re.compile(r"(?:^|[=,\"]|tfds:)([a-zA-Z][a-zA-Z0-9+.-]*://)")
_BUCKET_PATH = re.compile(r"(?:^|[=,\"]|tfds:)(gs://[^,\"]+)")
# The path of an open file: the process, and the number of its descriptor.
_descriptor = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)").fullmatch


# In a folder of a bucket whose files are being uploaded.
_UNFINISHED = ".unfinished"

prepare_libraries = buckets.prepare_libraries
NoRoomError = bucket_cache.NoRoomError
# A bucket cannot be read for the moment, which says nothing about its content.
UNREADABLE = (buckets.ServiceError, buckets.RightsError, buckets.BucketError)

# The errors of reading a JSON file whose content has an unexpected form.
ODD_JSON = (
  OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
)  # fmt: skip


class FilesError(errors.UserError):
  """A path cannot be read or written as requested."""


def scheme_problem(name: str, value: Any) -> str:
  """Returns why a path such as s3://bucket/run cannot be used; "" if it can.

  Args:
    name: the flag or config key that contains the path, such as "--workdir".
    value: a path, `tfds:PATH`, or text with paths in it, such as
      configs/finetune.py:task=rte,from=PATH; or a list or dict of such values.
      Values of other types are ignored.
  """
  if isinstance(value, dict | list | tuple):
    inner = value.values() if isinstance(value, dict) else value
    return next(filter(None, (scheme_problem(name, x) for x in inner)), "")
  for scheme in _SCHEME.findall(value) if isinstance(value, str) else ():
    if scheme == buckets.SCHEME:
      if found := buckets.problem(name, value[value.index(scheme) :]):
        return found
    else:
      return (
        f"{name}={value}: paths that begin with {scheme} cannot be used; give "
        f"one of the file system, such as a bucket mounted there, or "
        f"{buckets.SCHEME}BUCKET/FOLDER"
      )
  return ""


def check_bucket(path: str) -> None:
  """Raises an error that says what to do unless the bucket can be listed."""
  buckets.check_bucket(path)


def bucket_paths(value: Any) -> list[str]:
  """Returns the paths of buckets in a value; see `scheme_problem`."""
  if isinstance(value, dict | list | tuple):
    inner = value.values() if isinstance(value, dict) else value
    return [path for x in inner for path in bucket_paths(x)]
  found = _BUCKET_PATH.search(value) if isinstance(value, str) else None
  return [found[1]] if found else []


def check_readable(path: str) -> None:
  """Raises FilesError for a FIFO, device or socket.

  These can be read only once, and opening one may block forever. A path that
  does not exist is not an error here.

  Args:
    path: a file or folder that is to be read.
  """
  if is_remote(path):
    return
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):
    return
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise FilesError(
      f"{path} is a {_kind(mode)}, which can be read only once; copy its "
      "content into a regular file, and give that"
    )


def check_writable(path: str) -> None:
  """Raises FilesError if `writing` cannot write a path.

  Call it before the work whose result is to be written.

  Args:
    path: the file to write.
  """
  if is_remote(path):
    if path.endswith("/") or not buckets.split(path)[1]:
      raise FilesError(f"{path} is a folder; name a file")
    return buckets.check_writable(path)
  target, mode = _resolve(path)
  if mode is None:
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
      raise FilesError(f"{path}: there is no folder {folder}; create it first")
  elif stat.S_ISDIR(mode):
    raise FilesError(f"{path} is a folder; name a file")
  elif stat.S_ISSOCK(mode) and _own_descriptor(target) is None:
    raise FilesError(f"{path} is a socket, which cannot be opened; name a file")


def make_folder(path: str) -> None:
  """Creates a folder and its parents, unless it exists.

  If the path is a symbolic link to a missing folder, that folder is created.

  Raises:
    FilesError: a file of that name exists, or of the name of a parent.
  """
  if is_remote(path):
    return
  try:
    os.makedirs(os.path.realpath(path), exist_ok=True)
  except (FileExistsError, NotADirectoryError) as error:
    raise FilesError(
      f"{path} cannot be a folder: {error.filename} is not a folder; give "
      "another path"
    ) from error


@contextlib.contextmanager
def writing(
  path: str, mode: str = "wb", errors: str = "strict"
) -> Iterator[Any]:
  """Yields a file object, whose content replaces `path` after success.

  Args:
    path: the file, or a link to it. A device or a FIFO is written directly.
    mode: "wb", or "w" for text in UTF-8.
    errors: how to encode characters that UTF-8 lacks, as for `open`.

  Raises:
    FilesError: the path is a folder or a socket.
    OSError: the file cannot be written; the error names the path.
  """
  if is_remote(path):
    with _collecting(path, mode, errors) as collected:
      yield collected
    return
  check_writable(path)
  target, there = _resolve(path)
  with contextlib.ExitStack() as stack:
    if (own := _own_descriptor(target)) is not None:
      descriptor = _duplicate(path, own)
    elif there is not None and not stat.S_ISREG(there):
      descriptor = _open(path, target, os.O_WRONLY)  # no O_CREAT or O_TRUNC
    elif _descriptor(target):  # of another process: it cannot be replaced
      descriptor = _open(path, target, os.O_WRONLY | os.O_TRUNC)
    else:
      _, lock = stack.enter_context(_replacing(path, target, there))
      descriptor = os.dup(lock)
    raw = _File(descriptor, path)
    file: Any = io.BufferedWriter(cast(io.RawIOBase, raw))
    if mode == "w":
      file = io.TextIOWrapper(file, encoding="utf-8", errors=errors)
    try:
      yield file
      file.flush()
    except BaseException:
      with contextlib.suppress(OSError):  # it would fail once more
        file.close()
      raw.close()
      raise
    file.close()


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields a temporary path, whose file replaces `path` after success.

  This is for writers that open their file themselves. They must not replace the
  temporary file by another one.

  Args:
    path: the target: a regular file, or a path that does not exist yet.

  Raises:
    FilesError: the target exists and is not a regular file.
    OSError: the target cannot be written; the error names the path.
  """
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix="bert_jax") as folder:
      temporary = os.path.join(folder, os.path.basename(path))
      yield temporary
      _recent.pop(path, None)
      with open(temporary, "rb") as f:
        found = buckets.put(path, f)
      bucket_cache.keep(found, temporary)
    return
  check_writable(path)
  target, there = _resolve(path)
  if (there is not None and not stat.S_ISREG(there)) or _descriptor(target):
    kind = _kind(there) if there is not None else "descriptor"
    raise FilesError(f"{path} is a {kind}; a regular file is needed here")
  with _replacing(path, target, there) as (temporary, _):
    yield temporary


@contextlib.contextmanager
def whole_folder(path: str) -> Iterator[str]:
  """Yields a temporary folder, which is renamed to `path` after success.

  Its files get the permissions of the folder.

  Args:
    path: the target: an empty folder, or a path that does not exist yet. Parent
      folders are created.

  Raises:
    OSError: the target cannot be written, or is not empty.
  """
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix="bert_jax") as folder:
      yield folder
      remove_unfinished(path)
      if is_folder(path):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
      mark = os.path.join(path, _UNFINISHED)
      buckets.put(mark, b"")
      upload_folder(folder, path)
      buckets.delete(mark)
    return
  target, there = _resolve(path)
  parent = os.path.dirname(target)
  make_folder(parent)
  _remove_abandoned(target)
  with naming(path):
    temporary, lock = _create(target, _make_locked_folder)
  try:
    yield temporary
    with naming(path):
      if there is not None:
        os.chmod(temporary, stat.S_IMODE(there))
      mode = os.stat(temporary).st_mode & 0o666
      for folder, _, names in os.walk(temporary):
        for name in names:
          with open(os.path.join(folder, name), "rb") as f:
            os.fchmod(f.fileno(), mode)  # safetensors makes private files
            os.fsync(f.fileno())
      os.replace(temporary, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    os.close(lock)


def remove_unfinished(path: str) -> None:
  """Deletes a folder of a bucket that `whole_folder` could not complete."""
  if is_remote(path) and buckets.find(os.path.join(path, _UNFINISHED)):
    delete_folder(path)


def write_bytes(path: str, content: bytes) -> None:
  """Writes bytes to a file, atomically."""
  with writing(path) as f:
    f.write(content)


def write_text(path: str, text: str, errors: str = "strict") -> None:
  """Writes text in UTF-8 to a file, atomically."""
  with writing(path, "w", errors) as f:
    f.write(text)


def write_json(path: str, value: Any, **kwargs: Any) -> None:
  """Writes strict JSON as a file of text, atomically; see `to_json`."""
  write_text(path, to_json(value, **kwargs) + "\n")


def read_json(
  path: str, default: dict[str, Any] | None = None
) -> dict[str, Any]:
  """Reads a file that is one JSON object.

  Args:
    path: the file.
    default: the result if the file does not exist; None = raise.

  Raises:
    ValueError: the file is not one JSON object; the message names the file.
    FileNotFoundError: the file does not exist, and there is no default.
  """
  if default is not None and not exists(path):
    return default
  try:
    with reading(path, "r") as f:
      value = json.load(f)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: it is not JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: it is not a JSON object")
  return value


def file_hash(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(local(path), "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def json_hash(value: Any) -> str:
  """Returns the SHA-256 of a JSON value, which ignores the order of keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def to_json(value: Any, **kwargs: Any) -> str:
  """Returns strict JSON, in which NaN and infinity become null.

  Args:
    value: the value to encode.
    **kwargs: arguments of `json.dumps`.
  """
  return json.dumps(without_nan(value), allow_nan=False, **kwargs)


def without_nan(value: Any) -> Any:
  """Returns a copy of a JSON value in which NaN and infinity are None."""
  if isinstance(value, Mapping):
    return {k: without_nan(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nan(v) for v in value]
  is_finite = not isinstance(value, float) or math.isfinite(value)
  return value if is_finite else None


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """A context that adds the name of a file to an OSError of writing it."""
  try:
    yield
  except OSError as error:
    if error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, path) from error


# --- what buckets and the file system both have ------------------------------


def is_remote(path: Any) -> bool:
  """Returns whether a path lies in a bucket and not in the file system."""
  return buckets.is_bucket_path(path)


def absolute(path: str) -> str:
  """Returns a path that does not depend on the current folder."""
  return buckets.normal(path) if is_remote(path) else os.path.abspath(path)


def real(path: str) -> str:
  """Returns an absolute path without symbolic links."""
  return buckets.normal(path) if is_remote(path) else os.path.realpath(path)


def exists(path: str) -> bool:
  """Returns whether a path is a file or a folder."""
  if not is_remote(path):
    return os.path.exists(path)
  return buckets.find(path) is not None or buckets.is_folder(path)


def is_file(path: str) -> bool:
  """Returns whether a path is a file."""
  if not is_remote(path):
    return os.path.isfile(path)
  return buckets.find(path) is not None


def is_folder(path: str) -> bool:
  """Returns whether a path is a folder; in a bucket, one that is not empty."""
  if not is_remote(path):
    return os.path.isdir(path)
  return buckets.is_folder(path)


def size(path: str) -> int:
  """Returns the size of a file in bytes."""
  if not is_remote(path):
    return os.path.getsize(path)
  return _find(path).size


def age(path: str) -> float:
  """Returns how long ago a file was written, in seconds."""
  if not is_remote(path):
    return time.time() - os.path.getmtime(path)
  return time.time() - _find(path).updated


def is_free(path: str) -> bool:
  """Returns whether there is nothing at a path, or an empty folder."""
  return not exists(path) or (is_folder(path) and not list_names(path))


def is_own(path: str) -> bool:
  """Returns whether a file or folder of this machine is this user's."""
  return os.stat(local(path)).st_uid == os.getuid()


def stamps(path: str) -> list[int]:
  """Returns numbers of which one changes if the content of a file does.

  Raises:
    OSError: there is no such file.
  """
  found = os.stat(local(path))
  # A copy that keeps the times of the original still has another ctime.
  return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def reading(
  path: str,
  mode: str = "rb",
  *,
  encoding: str = "utf-8",
  errors: str = "strict",
  newline: str | None = None,
) -> Any:
  """Opens a file for reading, at any place.

  Args:
    path: the file.
    mode: "rb", or "r" for text.
    encoding: of text.
    errors: how to decode what is not in this encoding, as for `open`.
    newline: which ends of lines are translated, as for `open`.

  Returns:
    A file object, which is a context.
  """
  if not is_remote(path):
    if mode == "rb":
      return open(path, "rb")
    return open(path, mode, encoding=encoding, errors=errors, newline=newline)
  bucket_appends.sync(path)
  raw = buckets.open_object(path)
  if mode == "rb":
    return raw
  return io.TextIOWrapper(raw, encoding, errors, newline)


def read_bytes(path: str) -> bytes:
  """Returns the content of a file."""
  with reading(path) as f:
    return f.read()


def read_text(path: str) -> str:
  """Returns the content of a file of text in UTF-8."""
  with reading(path, "r") as f:
    return f.read()


def append(path: str, text: str) -> None:
  """Adds text at the end of a file, which is created if it does not exist.

  In a bucket the text is uploaded by a thread, within some seconds; `sync`
  waits for that.

  Args:
    path: the file.
    text: the text, in UTF-8.
  """
  if is_remote(path):
    return bucket_appends.append(path, text.encode())
  with naming(path), open(path, "a", encoding="utf-8") as f:
    f.write(text)


def append_line(path: str, line: str) -> None:
  """Adds a line at the end of a file, also if a kill cut its last line off."""
  if is_remote(path):
    return bucket_appends.append(path, f"{line}\n".encode())
  with open(path, "ab+") as f:
    if end := f.tell():
      f.seek(end - 1)
      f.write(b"" if f.read(1) == b"\n" else b"\n")
    f.write(f"{line}\n".encode())


def opened_log(path: str) -> Any:
  """Opens a file of the file system for a process to add its messages to."""
  return open(path, "a", encoding="utf-8")


class Appended:
  """A file that stays open, at whose end bytes are written.

  Each write of a file of the file system can be read at once; that of a bucket
  as `append` says.
  """

  def __init__(self, path: str, *, is_new: bool = False):
    """Opens the file.

    Args:
      path: the file, which is created if it does not exist.
      is_new: whether it must not exist; then no link is followed.
    """
    self._path = path
    self._file: Any = None
    if not is_remote(path):
      self._file = open(path, "xb" if is_new else "ab")
    else:
      bucket_appends.append(path, b"")

  def write(self, data: bytes) -> None:
    """Writes bytes."""
    if self._file is None:
      return bucket_appends.append(self._path, data)
    with naming(self._path):
      self._file.write(data)
      self._file.flush()

  def sync(self, *, to_disk: bool = False) -> None:
    """Waits until what was written can be read by other processes.

    Args:
      to_disk: whether to wait for the disk, too.
    """
    if self._file is None:
      return bucket_appends.sync(self._path)
    with naming(self._path):
      self._file.flush()
      if to_disk:
        os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file; what was written can be read."""
    if self._file is None:
      return bucket_appends.sync(self._path)
    with naming(self._path):
      self._file.close()


def sync(folder: str) -> None:
  """Waits until all that was appended below a folder can be read by others."""
  if is_remote(folder):
    bucket_appends.sync(folder)


def create(path: str, content: bytes = b"") -> None:
  """Creates a file that only this user may read.

  Raises:
    FileExistsError: it exists; of several processes only one creates it.
  """
  if is_remote(path):
    try:
      buckets.put(path, content, 0)
    except buckets.ChangedError:
      raise FileExistsError(errno.EEXIST, "It exists", path) from None
    return
  flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
  with open(os.open(path, flags, 0o600), "wb") as f:
    f.write(content)


def delete(path: str) -> None:
  """Deletes a file.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if is_remote(path):
    _find(path)
    buckets.delete(path)
  else:
    os.remove(path)


def make_folders(path: str) -> None:
  """Creates a folder and its parents; buckets need none.

  Raises:
    OSError: it cannot be created.
  """
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def list_names(folder: str) -> list[str]:
  """Returns the names of the files and folders in a folder, in any order.

  Raises:
    FileNotFoundError: there is no such folder.
  """
  if not is_remote(folder):
    return os.listdir(folder)
  found, inner = buckets.children(folder)
  if not found and not inner:
    raise FileNotFoundError(errno.ENOENT, "No such folder", folder)
  names = {os.path.basename(one.path) for one in found}
  return sorted(names.union(inner))


def entries(folder: str) -> tuple[list[str], list[str]]:
  """Returns the paths of the files, and the names of the folders, in a folder.

  Raises:
    OSError: there is no such folder.
  """
  if is_remote(folder):
    found, inner = buckets.children(folder)
    return [one.path for one in found], inner
  with os.scandir(folder) as scanned:
    there = list(scanned)
  return (
    [one.path for one in there if one.is_file()],
    [one.name for one in there if one.is_dir()],
  )


def walk(folder: str) -> list[str]:
  """Returns the paths of all files below a folder, also in its folders."""
  if is_remote(folder):
    return [one.path for one in buckets.objects(folder)]
  return [
    os.path.join(parent, name)
    for parent, _, names in os.walk(folder)
    for name in names
  ]


def glob(pattern: str) -> list[str]:
  """Returns the paths that a pattern of the shell names, with ** for any depth.

  Args:
    pattern: the pattern; also the path of a bucket, whose name has no pattern.
  """
  if not is_remote(pattern):
    return local_glob.glob(pattern, recursive=True)
  fixed = re.split(r"[*?[]", pattern)[0].rpartition("/")[0]
  matches = re.compile(_regex(pattern)).fullmatch
  found = [one.path for one in buckets.objects(fixed)]
  return [path for path in found if matches(path)]


def escape_glob(path: str) -> str:
  """Returns a pattern for `glob` that names just this path."""
  if is_remote(path):
    return buckets.SCHEME + local_glob.escape(path[len(buckets.SCHEME) :])
  return local_glob.escape(path)


def delete_folder(folder: str, first: Sequence[str] = ()) -> None:
  """Deletes a folder and all that is in it.

  Args:
    folder: the folder.
    first: names in it that are deleted before the rest in a bucket, where a
      folder does not disappear at once.
  """
  if not is_remote(folder):
    shutil.rmtree(folder)
    return
  for name in first:
    buckets.delete(os.path.join(folder, name))
  buckets.delete_all(buckets.objects(folder))


def move_folder(folder: str, target: str, last: Sequence[str] = ()) -> None:
  """Moves a folder; in a bucket it is copied and then deleted.

  Args:
    folder: the folder.
    target: its new path, where nothing exists.
    last: names in it that mark it as complete. In a bucket they are copied
      last and deleted first.
  """
  if not is_remote(folder):
    os.rename(folder, target)
    return
  start = len(buckets.normal(folder))
  there = buckets.objects(folder)
  marks = [one for one in there if one.path[start + 1 :] in last]
  for part in ([one for one in there if one not in marks], marks):
    buckets.in_threads(
      lambda one: buckets.copy(one, target + one.path[start:]), part
    )
  delete_folder(folder, last)


def upload_folder(source: str, target: str) -> None:
  """Copies a local folder to a folder, whose other files stay.

  Args:
    source: the local folder.
    target: the folder to write.
  """
  names = [os.path.relpath(path, source) for path in walk(source)]
  if not is_remote(target):
    shutil.copytree(source, target, dirs_exist_ok=True)
    return

  def put(name):
    with open(os.path.join(source, name), "rb") as f:
      buckets.put(os.path.join(target, name), f)

  buckets.in_threads(put, names)


def local(path: str) -> str:
  """Returns the path of a local copy of a file or folder.

  A path of the file system is returned as it is. The copy of a bucket's folder
  has all of its files.

  Raises:
    FileNotFoundError: it does not exist.
    bucket_cache.NoRoomError: a copy does not fit the disk.
  """
  if not is_remote(path):
    return path
  if copy := _recent_copy(path):
    return copy
  bucket_appends.sync(path)
  if found := buckets.find(path):
    return _copies([found])[0]
  there = buckets.objects(path)
  if not there:
    raise FileNotFoundError(errno.ENOENT, "No such file or folder", path)
  copies = set(bucket_cache.copy(there))
  top = bucket_cache.place(path)
  for old in walk(top):  # the bucket has them no longer
    if old not in copies:
      bucket_cache.forget(old)
  return top


def local_files(paths: Sequence[str]) -> list[str]:
  """Returns the paths of local copies of some files of one folder.

  Raises:
    FileNotFoundError: a file does not exist; the error names it.
    bucket_cache.NoRoomError: they do not fit the disk.
  """
  if not any(map(is_remote, paths)):
    return list(paths)
  there: dict[str, buckets.Object] = {}
  for folder in {os.path.dirname(buckets.normal(path)) for path in paths}:
    there |= {one.path: one for one in buckets.children(folder)[0]}
  for path in paths:
    if buckets.normal(path) not in there:
      raise FileNotFoundError(errno.ENOENT, "No such file", path)
  return _copies([there[buckets.normal(path)] for path in paths])


# Path -> its copy, and when the bucket was asked whether it is the same still.
_recent: dict[str, tuple[str, float]] = {}
_RECENT_SECS = 30.0


def _copies(found: Sequence[buckets.Object]) -> list[str]:
  """Returns local copies of objects, and remembers them for some seconds.

  Opening prepared data asks for each of its files several times.
  """
  copies = bucket_cache.copy(found)
  now = time.monotonic()
  for one, copy in zip(found, copies, strict=True):
    _recent[one.path] = copy, now
  return copies


def _recent_copy(path: str) -> str:
  """Returns a copy that was compared with its object just now, or ""."""
  copy, at = _recent.get(path, ("", 0.0))
  is_recent = copy and time.monotonic() - at < _RECENT_SECS
  return copy if is_recent and os.path.exists(copy) else ""


def missing(paths: Iterable[str]) -> list[str]:
  """Returns the paths that do not exist, which may be many of few folders."""
  paths = list(paths)
  remote = [path for path in paths if is_remote(path)]
  there: set[str] = set()
  for folder in {os.path.dirname(buckets.normal(path)) for path in remote}:
    there.update(one.path for one in buckets.children(folder)[0])
  return [
    path
    for path in paths
    if (
      buckets.normal(path) not in there
      if is_remote(path)
      else not os.path.exists(path)
    )
  ]


def forget_copy(path: str) -> None:
  """Deletes the local copy of a file of a bucket, because it is damaged."""
  if is_remote(path):
    _recent.pop(path, None)
    bucket_cache.forget(bucket_cache.place(path))


def cache_folder(folder: str) -> str:
  """Returns where this machine may note facts about the files of a folder."""
  return bucket_cache.place(folder) if is_remote(folder) else folder


@contextlib.contextmanager
def local_output(folder: str) -> Iterator[str]:
  """Yields a local folder whose files are in `folder` at the end.

  This is for libraries that write files by themselves.

  Args:
    folder: the folder to write, which is also created.
  """
  if not is_remote(folder):
    os.makedirs(folder, exist_ok=True)
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="bert_jax") as temporary:
    yield temporary
    upload_folder(temporary, folder)


def _find(path: str) -> buckets.Object:
  found = buckets.find(path)
  if found is None:
    raise FileNotFoundError(errno.ENOENT, "No such file", path)
  return found


def _regex(pattern: str) -> str:
  """Returns the regular expression of a pattern of the shell, with **."""
  parts = []
  for part in re.split(r"(\*\*/|\*\*)", pattern):
    if part.startswith("**"):
      parts.append("(?:.*/)?" if part == "**/" else ".*")
    else:  # of which * and ? do not match a slash
      found = fnmatch.translate(part).removeprefix("(?s:")
      found = re.sub(r"\)\\[Zz]$", "", found)
      parts.append(re.sub(r"(?<!\\)\.", "[^/]", found).replace("(?>", "(?:"))
  return "".join(parts)


@contextlib.contextmanager
def _collecting(path: str, mode: str, errors: str) -> Iterator[Any]:
  """Yields a local file, whose content becomes an object after success."""
  _recent.pop(path, None)
  bucket_appends.forget(path)
  with tempfile.TemporaryFile() as raw:
    file: Any = raw
    if mode == "w":
      file = io.TextIOWrapper(
        cast(Any, raw), encoding="utf-8", errors=errors, newline="\n"
      )
    yield file
    file.flush()
    buckets.put(path, cast(Any, raw))
    if mode == "w":
      file.detach()


# --- paths -------------------------------------------------------------------


def _kind(mode: int) -> str:
  """Returns the type of a file, as a word, from its mode."""
  kinds = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
  }
  return kinds.get(stat.S_IFMT(mode), "file")


def _resolve(path: str) -> tuple[str, int | None]:
  """Follows symbolic links, even to files that do not exist yet.

  Args:
    path: as the user gave it.

  Returns:
    The absolute path of the file itself, and its mode, or None if it does not
    exist. The target of /dev/stdout keeps its path below /proc.

  Raises:
    OSError: the links form a circle, or cannot be followed.
  """
  if not os.path.basename(path) and os.path.dirname(path):  # a slash at the end
    path = path.rstrip("/") or "/"
  with naming(path):
    target = path
    for _ in range(_MAX_LINKS):
      parent, name = os.path.split(target)
      target = os.path.join(os.path.realpath(parent), name)
      if _descriptor(target) or not os.path.islink(target):
        break
      target = os.path.join(os.path.dirname(target), os.readlink(target))
    else:
      raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    try:
      return target, os.stat(target).st_mode
    except FileNotFoundError:
      return target, None


def _own_descriptor(target: str) -> int | None:
  """Returns the descriptor of this process that a path denotes, or None."""
  found = _descriptor(target)
  return int(found[2]) if found and int(found[1]) == os.getpid() else None


# --- opening -----------------------------------------------------------------


class _File(io.FileIO):
  """A file whose write errors name the path that the user gave."""

  def __init__(self, descriptor: int, path: str):
    super().__init__(descriptor, "wb")
    self._path = path

  def write(self, data: Any) -> int:
    with naming(self._path):
      return super().write(data)


def _open(path: str, target: str, flags: int) -> int:
  with naming(path):
    return os.open(target, flags | os.O_CLOEXEC, 0o666)


def _duplicate(path: str, descriptor: int) -> int:
  """Duplicates a descriptor, which shares its position in the file."""
  for stream in (sys.stdout, sys.stderr):
    if stream is not None and not stream.closed:
      stream.flush()  # earlier output must come first
  with naming(path):
    return os.dup(descriptor)


@contextlib.contextmanager
def _replacing(
  path: str, target: str, there: int | None
) -> Iterator[tuple[str, int]]:
  """Yields a temporary file that is renamed to a resolved target.

  Args:
    path: as the user gave it.
    target: the resolved path.
    there: the mode of the target, or None if it does not exist.

  Yields:
    The path of the temporary file and a locked descriptor of it.
  """
  _remove_abandoned(target)
  with naming(path):
    temporary, lock = _create(target, _make_locked_file)
  try:
    yield temporary, lock
    with naming(path):
      if there is not None:
        os.fchmod(lock, stat.S_IMODE(there) & 0o777)
      os.fsync(lock)
      os.replace(temporary, target)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    raise
  finally:
    os.close(lock)


# --- temporary names ---------------------------------------------------------


def _stem(target: str) -> str:
  """Returns the start of the temporary names of a target, with the dot."""
  name = os.path.basename(target)
  while len(os.fsencode(name)) > _NAME_BYTES:
    name = name[:-1]
  return f".{name}."


def is_temporary(name: str) -> bool:
  """Returns whether a name has the form of this module's temporary names."""
  return bool(_TEMPORARY.fullmatch(name))


_TEMPORARY = re.compile(
  rf"\..*\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp", re.DOTALL
)


def _create(target: str, make: Any) -> tuple[str, int]:
  """Creates a temporary file or folder; returns its path and its lock."""
  folder, stem = os.path.dirname(target), _stem(target)
  for _ in range(_TRIES):
    name = f"{stem}{secrets.token_hex(_RANDOM_BYTES)}.tmp"
    temporary = os.path.join(folder, name)
    lock = make(temporary, os.path.exists(target))
    if _lock(lock) and _is_still(lock, temporary):
      return temporary, lock
    os.close(lock)  # another writer took it for abandoned and deletes it
  raise OSError(errno.EAGAIN, "temporary files vanish when they are created")


def _make_locked_file(temporary: str, is_private: bool) -> int:
  # A replacement must not be readable by more users than the file it replaces.
  flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
  return os.open(temporary, flags, 0o600 if is_private else 0o666)


def _make_locked_folder(temporary: str, is_private: bool) -> int:
  del is_private  # the writer chooses the modes of the files in it
  os.mkdir(temporary)
  return os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _lock(descriptor: int, *, must: bool = False) -> bool:
  """Locks a file or folder; returns False if another process holds the lock.

  Args:
    descriptor: an open file or folder.
    must: whether to return False also on a file system without locks.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # a file system without locks
    return not must
  return True


def _is_still(descriptor: int, path: str) -> bool:
  """Returns whether a path still names the file of a descriptor."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except FileNotFoundError:
    return False


def _remove_abandoned(target: str) -> None:
  """Deletes temporary files that killed writers of a target left."""
  folder, stem = os.path.dirname(target), _stem(target)
  try:
    names = os.listdir(folder)
  except OSError:
    return  # if writing fails for the same reason, its error says why
  for name in names:
    if name.startswith(stem) and is_temporary(name):
      if len(name) == len(stem) + 2 * _RANDOM_BYTES + len(".tmp"):
        remove_abandoned(os.path.join(folder, name))


def remove_abandoned(path: str) -> None:
  """Deletes a temporary file or folder, unless its writer is still alive."""
  try:
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
      return  # not a file of this module
    kind = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
    flags = kind | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
  except OSError:
    return  # gone by now, or not ours to delete
  try:
    if _lock(descriptor, must=True) and _is_still(descriptor, path):
      if stat.S_ISDIR(mode):
        shutil.rmtree(path, ignore_errors=True)
      else:
        with contextlib.suppress(OSError):
          os.remove(path)
  finally:
    os.close(descriptor)
