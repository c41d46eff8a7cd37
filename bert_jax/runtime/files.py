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
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
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
from typing import Any, cast

from bert_jax.runtime import errors

_RANDOM_BYTES = 8  # in a temporary name
# Bytes of NAME in a temporary name. They are limited so that the temporary name
# is not too long for the file system if NAME is not.
_NAME_BYTES = 64
_MAX_LINKS = 40  # the limit of the kernel
_TRIES = 100  # how many names are tried until one is locked
_SCHEME = re.compile(r"(?:^|[=,\"]|tfds:)([a-zA-Z][a-zA-Z0-9+.-]*://)")
# The path of an open file: the process, and the number of its descriptor.
_descriptor = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)").fullmatch


# The errors of reading a JSON file whose content has an unexpected form.
ODD_JSON = (
  OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
)  # fmt: skip


class FilesError(errors.UserError):
  """A path cannot be read or written as requested."""


def scheme_problem(name: str, value: Any) -> str:
  """Returns why a path such as gs://bucket/run cannot be used; "" if it can.

  Args:
    name: the flag or config key that contains the path, such as "--workdir".
    value: a path, `tfds:PATH`, or text with paths in it, such as
      configs/finetune.py:task=rte,from=PATH; or a list or dict of such values.
      Values of other types are ignored.
  """
  if isinstance(value, dict | list | tuple):
    inner = value.values() if isinstance(value, dict) else value
    return next(filter(None, (scheme_problem(name, x) for x in inner)), "")
  found = _SCHEME.search(value) if isinstance(value, str) else None
  if not found:
    return ""
  return (
    f"{name}={value}: paths that begin with {found[1]} cannot be used yet; "
    "give a path of the file system, such as a bucket mounted with gcsfuse"
  )


def check_readable(path: str) -> None:
  """Raises FilesError for a FIFO, device or socket.

  These can be read only once, and opening one may block forever. A path that
  does not exist is not an error here.

  Args:
    path: a file or folder that is to be read.
  """
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


def write_bytes(path: str, content: bytes) -> None:
  """Writes bytes to a file, atomically."""
  with writing(path) as f:
    f.write(content)


def write_text(path: str, text: str, errors: str = "strict") -> None:
  """Writes text in UTF-8 to a file, atomically."""
  with writing(path, "w", errors) as f:
    f.write(text)


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
  if default is not None and not os.path.exists(path):
    return default
  try:
    with open(path, encoding="utf-8") as f:
      value = json.load(f)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: it is not JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: it is not a JSON object")
  return value


def file_hash(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as f:
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
