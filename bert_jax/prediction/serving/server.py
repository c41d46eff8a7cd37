"""Runs a server: its socket, the loading of its models, and its end."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import logging
import os
import socket
import threading
import time
from typing import Any

from bert_jax import weights
from bert_jax.prediction import model as model_lib
from bert_jax.prediction.serving import served
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import signals
from bert_jax.runtime.settings import Config
from bert_jax.tasks.own import split_words

_log = logging.getLogger(__name__)

# The variable that holds the API key: other users can read the arguments of a
# process.
KEY_VARIABLE = "BERT_JAX_API_KEY"
# How often the server looks whether it was told to stop.
_POLL_SECS = 0.05


class ServeError(errors.UserError):
  """The server cannot start."""


def sources_of(texts: Sequence[str]) -> list[served.Source]:
  """Returns the models that --from names, as DIR or NAME=DIR.

  Raises:
    ServeError: `texts` is empty, or two models have the same name.
  """
  sources: list[served.Source] = []
  for text in texts:
    name, equals, path = text.partition("=")
    if not equals or files.exists(text):
      name, path = os.path.basename(os.path.normpath(text)), text
    if not name or not path:
      raise ServeError(f"--from={text}: give DIR or NAME=DIR")
    if name in (one.name for one in sources):
      raise ServeError(
        f"--from names two models {name!r}; give them names: "
        f"--from=one={path},two={path}"
      )
    sources.append(served.Source(name, path))
  if not sources:
    raise ServeError("serve needs --from=DIR, the model to serve")
  return sources


def open_socket(host: str, port: int) -> socket.socket:
  """Returns a socket that is bound, before any model is loaded.

  Raises:
    ServeError: The port is in use or may not be used, or there is no such host.
  """
  if not 0 <= port <= 65535:
    raise ServeError(f"--port={port}; give 1 to 65535, or 0 for any free port")
  try:
    found = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, proto, _, address = found[0]
    sock = socket.socket(family, kind, proto)
  except OSError as error:
    raise ServeError(f"--host={host}: {error}; give an address") from error
  try:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(2048)
  except OSError as error:
    sock.close()
    if error.errno == errno.EADDRINUSE:
      raise ServeError(
        f"port {port} of {host} is in use; stop that program, or give another "
        "--port"
      ) from error
    raise ServeError(
      f"port {port} of {host} cannot be used: {error.strerror}; give another "
      "--port or --host"
    ) from error
  return sock


def serve(
  config: Config, given: dict[str, Any], texts: Sequence[str], host: str,
  port: int,
) -> None:  # fmt: skip
  """Serves models until the process is told to stop.

  Args:
    config: the whole configuration, of which the group `serve` is read.
    given: the keys of the config that the user set, with their values.
    texts: the values of --from.
    host: the address to listen at.
    port: the port; 0 means any that is free.

  Raises:
    ServeError: The server cannot start.
    ValueError: A model cannot be loaded, or cannot do what is asked.
  """
  with _needing_extra():
    from bert_jax.prediction.serving import app
  own = config.serve
  if own.request_texts > own.queue_texts:
    raise ServeError(
      f"serve.request_texts={own.request_texts} is more than serve.queue_texts="
      f"{own.queue_texts}, so that such a request could never be taken"
    )
  sources = sources_of(texts)
  kinds = split_words(own.kinds)
  known = served.known_kinds()
  if unknown := set(kinds) - set(known):
    raise ServeError(
      f"serve.kinds has {', '.join(sorted(unknown))}; the kinds are "
      f"{', '.join(known)}"
    )
  sock = open_socket(host, port)
  limits = app.Limits(
    own.queue_texts, own.request_texts, own.request_bytes,
    config.predict.batch_tokens, config.predict.decimals,
  )  # fmt: skip
  server = app.Server(limits, os.environ.get(KEY_VARIABLE, ""))

  def load(goes_on: Callable[[], bool]) -> str:
    models = []
    count = 0
    for source in sources:
      pretrained = weights.read(source.path)
      model = model_lib.Model(pretrained, source.name, given, serves=True)
      models.append(served.Served(source.name, model, kinds))
      count += models[-1].compile(goes_on)
    server.ready(models)
    said = [f"{one.name} answers {', '.join(one.kinds)}" for one in models]
    return f"{'; '.join(said)}; {count} programs"

  with contextlib.closing(server):
    _Running(server, sock, own.grace_secs).run(load)


def explore(
  given: dict[str, Any], texts: Sequence[str], host: str, port: int
) -> None:
  """Shows what a model does inside, on a page; see `serve`."""
  with _needing_extra():
    from bert_jax.prediction.serving import explore as page
  sources = sources_of(texts)
  if len(sources) != 1:
    raise ServeError(f"explore shows one model; --from names {len(sources)}")
  sock = open_socket(host, port)
  server = page.Explore()

  def load(goes_on: Callable[[], bool]) -> str:
    del goes_on
    from bert_jax.prediction import exploring

    (source,) = sources
    pretrained = weights.read(source.path)
    model = model_lib.Model(pretrained, source.name, given)
    server.ready(exploring.Explorer(model))
    return f"{source.name}; open the page in a browser"

  with contextlib.closing(server):
    _Running(server, sock, grace_secs=1.0).run(load)


@contextlib.contextmanager
def _needing_extra() -> Iterator[None]:
  """A context in which a package that is missing is an error for the user."""
  try:
    yield
  except ImportError as error:
    raise ServeError(
      f"this mode needs {error.name}, which is not installed; install the "
      "extra: pip install 'bert_jax[serve]'"
    ) from error


class _Running:
  """A server that runs: one thread answers, another loads the models."""

  def __init__(self, server: Any, sock: socket.socket, grace_secs: float):
    """Prepares the server that listens at a socket.

    Args:
      server: has an ASGI application, `app`, and `stop`.
      sock: the socket.
      grace_secs: how long requests in progress may take at the end.
    """
    import uvicorn

    class Quiet(uvicorn.Server):
      """Leaves signals to `runtime.signals`."""

      @contextlib.contextmanager
      def capture_signals(self) -> Iterator[None]:
        yield

    self._server, self._sock = server, sock
    self._uvicorn = Quiet(
      uvicorn.Config(
        server.app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(grace_secs)),
      )
    )
    self._error: BaseException | None = None

  def run(self, load: Callable[[Callable[[], bool]], str]) -> None:
    """Serves until a signal, or until a model cannot be loaded.

    Args:
      load: loads the models, and says what it loaded. It is given a function
        that says whether the server still runs.
    """
    host, port = self._sock.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    loader = threading.Thread(
      target=self._load, args=(load, address), name="loader"
    )
    message = "requests in progress are answered, new ones are refused"
    with signals.Listener(message) as listener:
      listener.listen()
      _log.info("loading; see %s/health", address)
      loader.start()
      asyncio.run(self._serve(listener))
      loader.join()
    if self._error is not None:
      raise self._error

  async def _serve(self, listener: signals.Listener) -> None:
    async def watch() -> None:
      while not (listener.given or self._error):
        await asyncio.sleep(_POLL_SECS)
      self._server.stop()
      self._uvicorn.should_exit = True

    watcher = asyncio.create_task(watch())
    await self._uvicorn.serve(sockets=[self._sock])
    watcher.cancel()

  def _load(
    self, load: Callable[[Callable[[], bool]], str], address: str
  ) -> None:
    try:
      start = time.monotonic()
      said = load(lambda: not self._uvicorn.should_exit)
      secs = time.monotonic() - start
      _log.info("ready at %s after %.1f s: %s", address, secs, said)
    except BaseException as error:
      self._error = error
