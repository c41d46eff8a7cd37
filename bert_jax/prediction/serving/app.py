"""The HTTP application: routes, limits, the API key, metrics and health."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hmac
import logging
import time
from typing import Any

import prometheus_client
from starlette import applications
from starlette import exceptions
from starlette import requests as http
from starlette import responses
from starlette import routing

from bert_jax.kinds import answers
from bert_jax.prediction.serving import batcher as batchers
from bert_jax.prediction.serving import page
from bert_jax.prediction.serving import requests
from bert_jax.prediction.serving import served
from bert_jax.prediction.serving.requests import RequestError

_log = logging.getLogger(__name__)

# Paths that need no API key: load balancers ask for them, and the page has the
# field into which the key is typed.
_OPEN = ("/", "/health", "/openapi.json")


@dataclasses.dataclass(frozen=True)
class Limits:
  """The largest requests, and the longest queue, that the server accepts.

  Attributes:
    queue_texts: the most texts that wait or are computed at a time.
    request_texts: the most texts of a request.
    request_bytes: the most bytes of the body of a request.
    batch_tokens: a batch with so many tokens is full.
    decimals: the digits after the decimal point of vectors in /predict.
  """

  queue_texts: int = 4096
  request_texts: int = 2048
  request_bytes: int = 1 << 24
  batch_tokens: int = 2048
  decimals: int = 6


class Metrics:
  """The numbers that Prometheus collects."""

  def __init__(self):
    """Makes the metrics in a registry of their own."""
    self.registry = prometheus_client.CollectorRegistry()
    kwargs: dict[str, Any] = {"registry": self.registry}
    self.requests = prometheus_client.Counter(
      "bert_jax_requests", "Requests.", ["path", "status"], **kwargs
    )
    self.seconds = prometheus_client.Histogram(
      "bert_jax_request_seconds", "Seconds from a request to its answer.",
      ["path"], **kwargs,
    )  # fmt: skip
    self.texts = prometheus_client.Counter(
      "bert_jax_texts", "Texts that were computed.", **kwargs
    )
    self.tokens = prometheus_client.Counter(
      "bert_jax_tokens", "Tokens of these texts.", **kwargs
    )
    self.batch_texts = prometheus_client.Histogram(
      "bert_jax_batch_texts", "Texts that were computed together.",
      buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), **kwargs,
    )  # fmt: skip
    self.compute = prometheus_client.Counter(
      "bert_jax_compute_seconds", "Seconds in which batches were computed.",
      **kwargs,
    )  # fmt: skip
    self.inside = prometheus_client.Gauge(
      "bert_jax_waiting_texts", "Texts that wait or are computed.", **kwargs
    )

  def batch(self, num_texts: int, num_tokens: int, seconds: float) -> None:
    """Counts a batch that was computed."""
    self.texts.inc(num_texts)
    self.tokens.inc(num_tokens)
    self.batch_texts.observe(num_texts)
    self.compute.inc(seconds)


class Server:
  """Answers requests with the models that it is given.

  Attributes:
    app: the ASGI application.
    limits: what the server takes.
    models: name -> model; empty until `ready` is called.
  """

  def __init__(self, limits: Limits, api_key: str = ""):
    """Makes the application, which answers /health alone until `ready`.

    Args:
      limits: what the server takes.
      api_key: the key that requests must have as "Authorization: Bearer KEY";
        "" means none.
    """
    self.limits = limits
    self.models: dict[str, served.Served] = {}
    self._key = api_key.encode()
    self._metrics = Metrics()
    self._batcher = batchers.Batcher(limits.batch_tokens, self._metrics.batch)
    # One thread: a tagger numbers the documents of its texts in their order.
    self._parser = futures.ThreadPoolExecutor(1, "parser")
    self._inside = 0
    self._status = "starting"
    handlers: dict[str, Callable[[dict], Awaitable[dict]]] = {
      "/v1/embeddings": self._embeddings,
      "/predict": self._predict,
      "/rerank": self._rerank,
    }
    routes = [
      routing.Route(path, self._posted(path, handler), methods=["POST"])
      for path, handler in handlers.items()
    ]
    for path, get in (
      ("/", self._page),
      ("/health", self._health),
      ("/metrics", self._show_metrics),
      ("/openapi.json", self._openapi),
      ("/v1/models", self._list_models),
    ):
      routes.append(routing.Route(path, self._counted(path, get)))
    self.app = applications.Starlette(
      routes=routes,
      exception_handlers={exceptions.HTTPException: _http_error},
    )

  def ready(self, models: Sequence[served.Served]) -> None:
    """Lets requests be answered by models, which are compiled."""
    self.models = {one.name: one for one in models}
    self._status = "ok"

  def stop(self) -> None:
    """Lets /health say that the server stops."""
    self._status = "stopping"

  def close(self) -> None:
    """Answers what is queued, and ends the threads."""
    self._parser.shutdown()
    self._batcher.close()

  # --- routes that look ---

  async def _health(self, request: http.Request) -> responses.Response:
    status = 200 if self._status == "ok" else 503
    body = {"status": self._status, "models": list(self.models)}
    return responses.JSONResponse(body, status)

  async def _show_metrics(self, request: http.Request) -> responses.Response:
    self._metrics.inside.set(self._inside)
    return responses.Response(
      prometheus_client.generate_latest(self._metrics.registry),
      media_type=prometheus_client.CONTENT_TYPE_LATEST,
    )

  async def _page(self, request: http.Request) -> responses.Response:
    return responses.HTMLResponse(page.HTML)

  async def _openapi(self, request: http.Request) -> responses.Response:
    kinds = {one.name: one.kinds for one in self.models.values()}
    return responses.JSONResponse(page.openapi(kinds, bool(self._key)))

  async def _list_models(self, request: http.Request) -> responses.Response:
    data = [
      {
        "id": one.name,
        "object": "model",
        "created": 0,
        "owned_by": "bert_jax",
        "kinds": list(one.kinds),
      }
      for one in self.models.values()
    ]
    return responses.JSONResponse({"object": "list", "data": data})

  # --- routes that compute ---

  async def _embeddings(self, body: dict) -> dict:
    requests.check_fields(
      body, ("input",), ("model", "encoding_format", "dimensions", "user")
    )
    model = self._model(body)
    encoding = requests.choice_of(body, "encoding_format", ("float", "base64"))
    texts = requests.input_texts(body["input"], self.limits.request_texts)
    kind = model.embedder
    if not kind:
      raise requests.bad(f"{model.name} gives no embeddings", "model")
    vector = model.answerer(kind).vector
    width = model.model.pretrained.model["hidden_size"]
    if body.get("dimensions") not in (None, width):
      raise requests.bad(
        f"dimensions is {body['dimensions']!r:.60}; the vectors of "
        f"{model.name} have {width}",
        "dimensions",
      )
    records = [{"text": text} for text in texts]
    found, tokens = await self._ask(model, kind, records, "input")
    data = [
      {
        "object": "embedding",
        "index": index,
        "embedding": requests.encode_vector(answer[vector], encoding),
      }
      | ({"truncated": True} if answer.get("truncated") else {})
      for index, answer in enumerate(found)
    ]
    return {
      "object": "list",
      "data": data,
      "model": body.get("model") or model.name,
      "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }

  async def _predict(self, body: dict) -> dict:
    options = requests.options_of_all()
    requests.check_fields(body, ("records",), ("model", "kind", *options))
    model = self._model(body)
    kind = body.get("kind") or model.default_kind
    if kind not in model.kinds:
      raise requests.bad(
        f"kind is {kind!r:.60}; {model.name} answers {', '.join(model.kinds)}",
        "kind",
      )
    answerer = model.answerer(kind)
    asked = requests.options_of(answerer, body)
    records = requests.records_of(answerer, body, self.limits.request_texts)
    found, _ = await self._ask(model, kind, records, "records")
    listed = [
      served.to_json(answerer.narrow(one, asked), self.limits.decimals)
      for one in found
    ]
    return {"model": model.name, "kind": kind, "answers": listed}

  async def _rerank(self, body: dict) -> dict:
    requests.check_fields(
      body, ("query", "documents"),
      ("model", "top_n", "return_documents", "label"),
    )  # fmt: skip
    model = self._model(body)
    most = max(self.limits.request_texts - 1, 1)  # the query is a text, too
    documents = requests.listed(body["documents"], "documents", most, "texts")
    for name, text in (
      ("query", body["query"]),
      *((f"documents[{i}]", text) for i, text in enumerate(documents)),
    ):
      if not isinstance(text, str):
        raise requests.bad(f"{name} is {text!r:.60}; wanted text", name)
    top_n = requests.count_of(body, "top_n", len(documents), len(documents))
    shows = requests.choice_of(body, "return_documents", (False, True))
    kind = requests.scorer_of(model)
    answerer = model.answerer(kind)
    label = requests.relevance_label(answerer, body)
    records = answerer.scoring_records(body["query"], documents)
    found, tokens = await self._ask(model, kind, records, "documents")
    scores = answerer.relevances(found, label)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_n]
    results = [
      {"index": i, "relevance_score": scores[i]}
      | ({"document": {"text": documents[i]}} if shows else {})
      for i in order
    ]
    return {
      "model": model.name,
      "scored_by": kind,
      "results": results,
      "usage": {"total_tokens": tokens},
    }

  def _model(self, body: Mapping[str, Any]) -> served.Served:
    """Returns the model that a request names.

    With one model, any name is accepted.

    Raises:
      RequestError: The request names no model although several are served, or
        it names one that is not served.
    """
    name = body.get("model")
    if not isinstance(name, str | None):
      raise requests.bad(f"model is {name!r:.60}; wanted a name", "model")
    if len(self.models) == 1:
      return next(iter(self.models.values()))
    if name in self.models:
      return self.models[name]
    names = ", ".join(self.models)
    if name is None:
      raise requests.bad(f"model is missing; give one of {names}", "model")
    raise RequestError(
      404, f"there is no model {name!r:.100}; the models are {names}",
      "model_not_found", "model",
    )  # fmt: skip

  async def _ask(
    self,
    model: served.Served,
    kind: str,
    records: Sequence[Mapping[str, Any]],
    name: str,
  ) -> tuple[list[dict], int]:
    """Returns the answers to records, and the number of their tokens.

    Raises:
      RequestError: The queue is full or too short, a record cannot be used, or
        the model computed NaN or an infinite number.
    """
    count = len(records)
    if count > self.limits.queue_texts:
      raise RequestError(
        413, f"{name} needs {count} texts at a time; the server takes "
        f"{self.limits.queue_texts}", "too_many_items", name,
      )  # fmt: skip
    if self._inside + count > self.limits.queue_texts:
      raise RequestError(
        429, f"{self._inside} texts are waiting; ask again later",
        "queue_full",
      )  # fmt: skip
    self._inside += count
    try:
      loop = asyncio.get_running_loop()
      lines = await loop.run_in_executor(
        self._parser, model.parse, kind, records, name
      )
      future = self._batcher.submit(model.predictor(kind), lines)
      found = await asyncio.wrap_future(future)
    except answers.RecordError as error:
      raise requests.bad(str(error), name) from error
    except batchers.ClosedError as error:
      raise RequestError(503, str(error), "stopping") from error
    except answers.PredictError as error:
      raise RequestError(500, str(error), "model_error") from error
    finally:
      self._inside -= count
    return found, requests.num_tokens(lines)

  # --- around every route ---

  def _posted(
    self, path: str, handler: Callable[[dict], Awaitable[dict]]
  ) -> Callable[[http.Request], Awaitable[responses.Response]]:
    async def answer(request: http.Request) -> responses.Response:
      if not self.models:
        raise RequestError(
          503, "the models are being loaded; ask again later", "starting"
        )
      body = requests.parse_json(await self._read(request))
      return responses.JSONResponse(await handler(body))

    return self._counted(path, answer)

  def _counted(
    self,
    path: str,
    handler: Callable[[http.Request], Awaitable[responses.Response]],
  ) -> Callable[[http.Request], Awaitable[responses.Response]]:
    """Returns a handler that checks the key, and counts and times requests."""

    async def answer(request: http.Request) -> responses.Response:
      start = time.perf_counter()
      response: responses.Response
      try:
        if path not in _OPEN:
          self._check_key(request)
        response = await handler(request)
      except RequestError as error:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        if error.status == 401:
          headers["WWW-Authenticate"] = "Bearer"
        response = responses.JSONResponse(error.body(), error.status, headers)
      except http.ClientDisconnect:
        response = responses.Response(status_code=499)
      except Exception:
        _log.exception("%s failed", path)
        failed = RequestError(500, "the server failed; see its log", "failed")
        response = responses.JSONResponse(failed.body(), 500)
      self._metrics.requests.labels(path, str(response.status_code)).inc()
      self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
      return response

    return answer

  def _check_key(self, request: http.Request) -> None:
    """Raises RequestError unless a request has the API key."""
    given = request.headers.get("authorization", "").encode("latin-1")
    wanted = b"Bearer " + self._key
    # The time of this comparison does not tell how much of a key is right.
    if self._key and not hmac.compare_digest(given, wanted):
      raise RequestError(
        401, "the API key is missing or wrong; send Authorization: Bearer KEY",
        "invalid_api_key",
      )  # fmt: skip

  async def _read(self, request: http.Request) -> bytes:
    """Returns the body of a request.

    Raises:
      RequestError: It is too large; the rest is not read.
    """
    most = self.limits.request_bytes
    too_large = RequestError(
      413, f"the body is larger than {most} bytes", "too_large"
    )
    with contextlib.suppress(ValueError):
      if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
      size += len(part)
      if size > most:
        raise too_large
      parts.append(part)
    return b"".join(parts)


async def _http_error(
  request: http.Request, error: Exception
) -> responses.Response:
  """Answers a request for a path or a method that is not there."""
  assert isinstance(error, exceptions.HTTPException)
  message = f"{request.method} {request.url.path}: {error.detail}"
  found = RequestError(error.status_code, message, "no_such_route")
  return responses.JSONResponse(found.body(), error.status_code, error.headers)
