"""A disk that is full."""

import contextlib
import resource


@contextlib.contextmanager
def no_room():
  """As on a full disk: nothing can be written behind the first 16 bytes."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
