"""Sends files between the processes of a job, from host to host.

Each process listens on a port that the system chooses. It takes files that
others put into its folder, and gives files of its folder. A request is a line
of JSON with the secret of the job; the bytes of the file follow it, or the
answer. All hosts of a slice reach each other, as they do for the coordinator.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import re
import secrets
import socket
import socketserver
import threading
from typing import Any

from bert_jax.runtime import files
from bert_jax.runtime import peers

TIMEOUT_SECS = 120.0  # for a connection, and for each part of a file
_LINE_BYTES = 4096
_BLOCK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")

Address = tuple[str, int]


def own_host() -> tuple[str, int]:
  """Returns the address by which other processes reach this one.

  It is that of the interface by which this process reaches the coordinator.

  Returns:
    The address, and its family.
  """
  host, _, port = peers.service().coordinator_address.rpartition(":")
  family, kind, _, _, there = socket.getaddrinfo(
    host.strip("[]"), int(port), type=socket.SOCK_DGRAM
  )[0]
  with socket.socket(family, kind) as s:
    s.connect(there)  # of datagrams: nothing is sent
    return s.getsockname()[0], family


class Server:
  """Takes and gives the files of a folder, in threads.

  Attributes:
    address: the host and the port.
  """

  def __init__(
    self,
    folder: str,
    secret: str,
    check: Callable[[str], Any],
    host: str,
    family: int = socket.AF_INET,
  ):
    """Starts to listen.

    Args:
      folder: the folder.
      secret: what a request must contain.
      check: called with the path of a file that was put; if it raises, the
        sender is told so, and the file is deleted.
      host: the address by which others reach this process.
      family: its family.
    """
    _Server.address_family = socket.AddressFamily(family)
    self._server = _Server((host, 0), _Handler)
    self._server.folder, self._server.secret = folder, secret
    self._server.check = check
    self.address: Address = (host, self._server.server_address[1])
    threading.Thread(
      target=self._server.serve_forever, name="local steps", daemon=True
    ).start()

  def close(self) -> None:
    """Stops to listen."""
    self._server.shutdown()
    self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
  daemon_threads = True
  folder: str
  secret: str
  check: Callable[[str], Any]

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Says nothing: the other side meets the error, too."""


class _Handler(socketserver.StreamRequestHandler):
  timeout = TIMEOUT_SECS
  server: _Server

  def handle(self) -> None:
    request = json.loads(self.rfile.readline(_LINE_BYTES))
    name = str(request["name"])
    if not secrets.compare_digest(str(request["secret"]), self.server.secret):
      return
    if not _NAME.fullmatch(name):
      return
    path = os.path.join(self.server.folder, name)
    try:
      if request["what"] == "put":
        self._take(path, request["size"])
        self._answer(size=0)
      else:
        with files.reading(path) as f:
          size = files.size(path)
          self._answer(size=size)
          _copy(f.read, self.wfile.write, size)
    except Exception as error:
      self._answer(problem=f"{error}")
      raise

  def _answer(self, **answer: Any) -> None:
    self.wfile.write(json.dumps(answer).encode() + b"\n")

  def _take(self, path: str, size: int) -> None:
    with files.writing(path) as f:
      _copy(self.rfile.read, f.write, size)
    try:
      self.server.check(path)
    except Exception:
      files.delete(path)
      raise


def _copy(read: Any, write: Any, size: int) -> None:
  while size:
    data = read(min(size, _BLOCK))
    if not data:
      raise ConnectionError("the connection ended within a file")
    write(data)
    size -= len(data)


def put(address: Address, secret: str, path: str) -> None:
  """Sends a file to another process, which writes it into its folder.

  Args:
    address: of the other process.
    secret: that of the job.
    path: the file; it keeps its name.

  Raises:
    OSError: it cannot be sent, or arrived damaged.
  """
  size = files.size(path)
  with _asked(address, secret, "put", path, size) as (link, reader):
    with files.reading(path) as f:
      _copy(f.read, link.sendall, size)
    _answered(reader)


def fetch(address: Address, secret: str, path: str) -> None:
  """Fetches a file of another process, which has the same name.

  Args:
    address: of the other process.
    secret: that of the job.
    path: where it is written.

  Raises:
    OSError: it cannot be fetched.
  """
  with _asked(address, secret, "get", path, 0) as (_, reader):
    size = _answered(reader)
    with files.writing(path) as f:
      _copy(reader.read, f.write, size)


@contextlib.contextmanager
def _asked(
  address: Address, secret: str, what: str, path: str, size: int
) -> Iterator[tuple[socket.socket, Any]]:
  """A context with a connection on which a request was sent."""
  name = os.path.basename(path)
  request = {"secret": secret, "what": what, "size": size, "name": name}
  with (
    socket.create_connection(address, TIMEOUT_SECS) as link,
    link.makefile("rb") as reader,
  ):
    link.sendall(json.dumps(request).encode() + b"\n")
    yield link, reader


def _answered(reader: Any) -> int:
  line = reader.readline(_LINE_BYTES)
  answer = json.loads(line) if line.endswith(b"\n") else {}
  if "size" not in answer:
    raise ConnectionError(answer.get("problem") or "the other process ended")
  return int(answer["size"])
