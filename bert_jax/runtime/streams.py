"""Keeps a job running if a standard stream is closed or loses its reader."""

import contextlib
import errno
import io
import os
import sys

# The reader of the pipe, or the terminal, is gone.
_GONE = (errno.EPIPE, errno.EIO)


class _Lasting(io.FileIO):
  """A file whose written data are dropped once no process can read them.

  Attributes:
    lasts: whether to drop such data; False = the write fails as usual.
  """

  lasts = True

  def write(self, data):
    """Writes bytes; see `io.RawIOBase.write`."""
    try:
      return super().write(data)
    except OSError as error:
      if not self.lasts or error.errno not in _GONE:
        raise
      return memoryview(data).nbytes


def guard() -> None:
  """Lets the launcher go on if a standard stream is closed.

  A closed stream is replaced by the null device. Otherwise the next file that
  is opened would get the stream's number, and all printed text. `sys.stdin` and
  `sys.__stdout__` remain None, so that a mode that needs them can tell.
  """
  for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, mode), True)
  for number, name in ((1, "stdout"), (2, "stderr")):
    old = getattr(sys, name)
    stream = io.TextIOWrapper(
      io.BufferedWriter(_Lasting(number, "w", closefd=False)),
      encoding=old.encoding if old else "utf-8",
      errors=old.errors if old else "backslashreplace",
      line_buffering=name == "stderr" or bool(old and old.line_buffering),
      write_through=bool(old and old.write_through),
    )
    setattr(sys, name, stream)


@contextlib.contextmanager
def ending_with_reader():
  """A context in which a write to standard output fails without a reader."""
  raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
  if not isinstance(raw, _Lasting):
    yield
    return
  raw.lasts = False
  try:
    yield
  finally:
    raw.lasts = True


def printable(text: str) -> str:
  """Returns text with a ? for what standard output cannot encode."""
  encoding = sys.stdout.encoding or "utf-8"
  return text.encode(encoding, "replace").decode(encoding)
