"""The page of `bert-jax explore`: what a model does inside, in a browser."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent import futures
import html
from typing import Any

from starlette import applications
from starlette import requests as http
from starlette import responses
from starlette import routing

from bert_jax.kinds import answers
from bert_jax.prediction import exploring
from bert_jax.prediction.serving import explore_page
from bert_jax.prediction.serving import requests
from bert_jax.prediction.serving.requests import RequestError

_MOST_BYTES = 1 << 20
_MOST_WORDS = 200


class Explore:
  """Answers the questions of the page.

  Attributes:
    app: the ASGI application.
  """

  def __init__(self) -> None:
    """Makes the application, which asks for patience until `ready`."""
    self._explorer: exploring.Explorer | None = None
    # One thread: the device computes one thing at a time.
    self._pool = futures.ThreadPoolExecutor(1, "explorer")
    asked: Mapping[str, Callable[[exploring.Explorer, dict], Any]] = {
      "/attention": _attention,
      "/lens": _lens,
      "/probe": _probe,
      "/projection": _projection,
    }
    self.app = applications.Starlette(
      routes=[
        routing.Route("/", self._page),
        routing.Route("/health", self._health),
        *(
          routing.Route(path, self._posted(function), methods=["POST"])
          for path, function in asked.items()
        ),
      ]
    )

  def ready(self, explorer: exploring.Explorer) -> None:
    """Lets questions be answered."""
    self._explorer = explorer

  def stop(self) -> None:
    """Does nothing: a page has no load balancer that must be told."""

  def close(self) -> None:
    """Ends the thread."""
    self._pool.shutdown()

  async def _page(self, request: http.Request) -> responses.Response:
    name, has_words = "a model that is being loaded", False
    if self._explorer is not None:
      name = self._explorer.model.name
      has_words = self._explorer.fills_masks
    page = explore_page.HTML.replace("MODEL_NAME", html.escape(name))
    page = page.replace("HAS_WORDS", str(has_words).lower())
    return responses.HTMLResponse(page)

  async def _health(self, request: http.Request) -> responses.Response:
    is_ready = self._explorer is not None
    body = {"status": "ok" if is_ready else "starting"}
    return responses.JSONResponse(body, 200 if is_ready else 503)

  def _posted(self, function: Callable[[exploring.Explorer, dict], Any]) -> Any:
    async def answer(request: http.Request) -> responses.Response:
      try:
        explorer = self._explorer
        if explorer is None:
          raise RequestError(503, "the model is being loaded", "starting")
        data = await request.body()
        if len(data) > _MOST_BYTES:
          raise RequestError(413, "the body is too large", "too_large")
        body = requests.parse_json(data)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, function, explorer, body)
        return responses.JSONResponse(found)
      except answers.PredictError as error:
        bad = requests.bad(str(error))
        return responses.JSONResponse(bad.body(), bad.status)
      except RequestError as error:
        return responses.JSONResponse(error.body(), error.status)

    return answer


def _attention(explorer: exploring.Explorer, body: dict) -> Any:
  requests.check_fields(body, ("text",), ("text_b",))
  return explorer.attention(body["text"], body.get("text_b") or "")


def _lens(explorer: exploring.Explorer, body: dict) -> Any:
  requests.check_fields(body, ("text",), ("top_k",))
  return explorer.lens(body["text"], requests.count_of(body, "top_k", 5, 20))


def _probe(explorer: exploring.Explorer, body: dict) -> Any:
  requests.check_fields(body, ("texts",), ("words", "top_k"))
  texts = requests.listed(body["texts"], "texts", 8, "texts")
  words = body.get("words")
  words = list(exploring.OCCUPATIONS) if words is None else words
  words = requests.listed(words, "words", _MOST_WORDS, "words")
  if not all(isinstance(word, str) for word in words):
    raise requests.bad("words has something that is no text", "words")
  return explorer.probe(texts, words, requests.count_of(body, "top_k", 8, 50))


def _projection(explorer: exploring.Explorer, body: dict) -> Any:
  requests.check_fields(body, ("texts",), ())
  texts = requests.listed(body["texts"], "texts", exploring.MOST_TEXTS, "texts")
  return explorer.projection(texts)
