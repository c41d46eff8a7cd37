"""The server: what OpenAI's clients send, limits, the queue and the end."""

import asyncio
import base64
import contextlib
import functools
import gc
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import weakref

import numpy as np
import pytest

from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.prediction import model as model_lib
from bert_jax.prediction.serving import batcher as batchers
from bert_jax.prediction.serving import server as server_lib
from tests.support import launching
from tests.support import small_models

launch = launching.launch
ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["walked the", "the walk !", "!"]


# --- the batcher, with a predictor that only repeats ---


class Echo:
  """A predictor that takes its time, and notes what it computes together."""

  def __init__(self):
    self.batches = []
    self.gate = threading.Event()
    self.gate.set()

  def num_tokens(self, line):
    return len(line.name)

  def compute(self, lines):
    self.gate.wait(10)
    self.batches.append([line.name for line in lines])
    for line in lines:
      if line.name == "bad":
        raise answers.PredictError("not finite")
      yield {"answer": line.name}


def lines_of(*names):
  return [answers.Line(name, {}, []) for name in names]


@pytest.fixture
def batcher():
  with contextlib.closing(batchers.Batcher(8)) as found:
    yield found


def test_every_text_gets_its_own_answer(batcher):
  echo = Echo()
  jobs = [
    [f"{i}.{k}" for k in range(1 + i % 5)] for i in range(60)
  ]  # fmt: skip
  found = [batcher.submit(echo, lines_of(*names)) for names in jobs]
  for names, future in zip(jobs, found, strict=True):
    assert [one["answer"] for one in future.result(10)] == names


def test_a_request_with_few_texts_does_not_wait_for_one_with_many(batcher):
  echo = Echo()
  echo.gate.clear()
  first = batcher.submit(echo, lines_of("a"))
  many = batcher.submit(echo, lines_of(*(f"m{i}" for i in range(20))))
  few = batcher.submit(echo, lines_of("f0", "f1"))
  echo.gate.set()
  for future in (first, many, few):
    future.result(10)
  batches = [batch for batch in echo.batches if batch != ["a"]]
  names = [name for batch in batches for name in batch]
  assert names.index("f1") < 6
  assert all(sum(map(len, batch)) <= 8 + 3 for batch in batches)


class Noting(Echo):
  """Notes in a list that several share when it computes."""

  def __init__(self, name, order):
    super().__init__()
    self.name, self.order = name, order

  def compute(self, lines):
    self.order.append(self.name)
    return super().compute(lines)


def test_predictors_are_served_in_turns(batcher):
  order = []
  a, b, c = (Noting(name, order) for name in "abc")
  a.gate.clear()
  found = [
    batcher.submit(a, lines_of(*["aaaa"] * 2000)),
    batcher.submit(b, lines_of("b")),
    batcher.submit(c, lines_of(*["cccc"] * 6)),
  ]
  a.gate.set()
  for future in found:
    future.result(20)
  assert "".join(order) == "abcacac" + "a" * 997


def test_one_who_asks_again_and_again_keeps_nobody_waiting(batcher):
  order = []
  a, b = Noting("a", order), Noting("b", order)

  def again(future=None):  # before the next batch is taken
    if len(order) < 11:
      batcher.submit(b, lines_of("b")).add_done_callback(again)

  a.gate.clear()
  found = batcher.submit(a, lines_of(*["aaaa"] * 40))
  again()
  a.gate.set()
  found.result(10)
  assert "".join(order[:12]) == "ab" * 6


def test_the_batcher_keeps_no_predictor_that_is_gone(batcher):
  echo = Echo()
  batcher.submit(echo, lines_of("a")).result(10)
  gone = weakref.ref(echo)
  batcher.submit(Echo(), lines_of("b")).result(10)
  del echo
  for _ in range(100):
    gc.collect()
    if gone() is None:
      break
    time.sleep(0.05)
  assert gone() is None and len(batcher._turns) <= 1


def test_a_batch_that_fails_fails_its_requests_alone(batcher):
  echo = Echo()
  with pytest.raises(answers.PredictError):
    batcher.submit(echo, lines_of("bad", *("x" * 8 for _ in range(5)))).result(
      9
    )
  assert batcher.submit(echo, lines_of("b")).result(9) == [{"answer": "b"}]
  echo.gate.clear()  # the next ones wait, and are computed together
  batcher.submit(echo, lines_of("x"))
  found = [batcher.submit(echo, lines_of(name)) for name in ("c", "bad", "d")]
  echo.gate.set()
  assert [found[0].result(9), found[2].result(9)] == [
    [{"answer": "c"}],
    [{"answer": "d"}],
  ]
  with pytest.raises(answers.PredictError):
    found[1].result(9)


def test_closing_answers_what_is_queued_and_takes_no_more():
  echo, found = Echo(), batchers.Batcher(8)
  echo.gate.clear()
  queued = [found.submit(echo, lines_of(f"{i}")) for i in range(30)]
  gone = found.submit(echo, lines_of("gone"))
  gone.cancel()
  threading.Timer(0.05, echo.gate.set).start()
  found.close()
  assert [future.result(0)[0]["answer"] for future in queued] == [
    f"{i}" for i in range(30)
  ]
  assert "gone" not in sum(echo.batches, [])
  with pytest.raises(batchers.ClosedError):
    found.submit(echo, lines_of("late"))


# --- the application ---

KEY = "a secret"
starlette = pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")


@functools.cache
def served(kind=None, name="small"):
  from bert_jax.prediction.serving import served as served_lib

  found = small_models.make(kind)
  model = model_lib.Model(
    found, name, {"predict.batch_tokens": 96}, serves=True
  )
  return served_lib.Served(name, model)


@contextlib.contextmanager
def serving(*models, key="", **limits):
  """A function (method, path, ...) -> response, of a server in this process."""
  from bert_jax.prediction.serving import app

  server = app.Server(app.Limits(**limits), key)
  server.ready(models)

  async def ask(method, path, **kwargs):
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(
      transport=transport, base_url="http://test"
    ) as client:
      return await client.request(method, path, **kwargs)

  def run(method, path, **kwargs):
    return asyncio.run(ask(method, path, **kwargs))

  run.ask, run.server = ask, server
  with contextlib.closing(server):
    yield run


@pytest.fixture(scope="module")
def ask():
  with serving(served()) as found:
    yield found


def post(ask, path, body, status=200, **kwargs):
  found = ask("POST", path, json=body, **kwargs)
  assert found.status_code == status, found.text
  return found.json()


def test_embeddings_are_those_of_the_python_api(ask):
  found = post(ask, "/v1/embeddings", {"input": TEXTS, "model": "any"})
  wanted = [one.mean for one in served().model.embed(TEXTS, fields=("mean",))]
  got = [one["embedding"] for one in found["data"]]
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
  assert [one["index"] for one in found["data"]] == [0, 1, 2]
  assert found["model"] == "any"
  # [CLS] and [SEP]; walk ##ed the; the walk !; !
  assert found["usage"] == {"prompt_tokens": 13, "total_tokens": 13}


def test_base64_holds_the_same_numbers(ask):
  body = {"input": "the walk"}
  (one,) = post(ask, "/v1/embeddings", body)["data"]
  body["encoding_format"] = "base64"
  (other,) = post(ask, "/v1/embeddings", body)["data"]
  found = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
  np.testing.assert_array_equal(found, np.float32(one["embedding"]))


@pytest.mark.parametrize(
  ("body", "param"),
  [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": ""}, None),
    ({"input": [[1, 2]]}, "input"),
    ({"input": [1, 2]}, "input"),
    ({"input": ["a", 3]}, "input"),
    ({"input": None}, "input"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "encoding_format": ["hex"]}, "encoding_format"),
    ({"input": "a", "dimensions": 3}, "dimensions"),
    ({"input": "a", "dimension": 3}, "dimension"),
    ({"input": "a", "model": 3}, "model"),
  ],
)
def test_bad_embeddings_are_refused_by_the_field(ask, body, param):
  if param is None:
    post(ask, "/v1/embeddings", body)
    return
  found = post(ask, "/v1/embeddings", body, 400)
  assert found["error"]["param"] == param
  assert found["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"input": NaN}',
    b"[" * 100_000,
    b'"a"',
    b'{"input": "a", "user": 1e999}',
    b'{"input": "a", "dimensions": -1e999}',
  ],  # fmt: skip
)
def test_a_body_that_is_no_object_is_refused(ask, content):
  found = ask("POST", "/v1/embeddings", content=content)
  assert found.status_code == 400, found.text


def test_half_a_character_is_refused_and_named(ask):
  content = b'{"input": ["a", "\\ud800"]}'
  found = ask("POST", "/v1/embeddings", content=content)
  assert found.status_code == 400
  assert "input[1]" in found.json()["error"]["message"]


@pytest.mark.parametrize(
  ("path", "content", "word"),
  [
    ("/v1/embeddings", r'{"input": "a", "model": "\ud800"}', "model"),
    ("/v1/embeddings", r'{"input": "a", "\udfff": 1}', "udfff"),
    ("/rerank", r'{"query": "a\uDBFF", "documents": ["b"]}', "query"),
    ("/predict", r'{"records": [{"text": "[MASK]", "id": "\ud800"}]}', ".id"),
    ("/predict", r'{"records": [{"text": "[MASK]", "id": 1e999}]}', "1e999"),
    ("/predict", r'{"records": [{"text": "[MASK]", "\ud8aa": 1}]}', "ud8aa"),
  ],
)
def test_what_no_answer_can_hold_is_refused(ask, path, content, word):
  found = ask("POST", path, content=content.encode())
  assert found.status_code == 400, found.text
  assert word in found.json()["error"]["message"]


def test_both_halves_are_a_character(ask):
  content = r'{"input": "\ud83d\ude00", "model": "\ud83d\ude00"}'
  found = ask("POST", "/v1/embeddings", content=content.encode())
  assert found.json()["model"] == "\U0001f600"


def test_predict_answers_each_kind(ask):
  records = [{"text": "walk [MASK]", "id": 7}]
  body = {"records": records, "top_k": 2}
  found = post(ask, "/predict", body)
  assert found["kind"] == "fill-mask"
  (one,) = found["answers"]
  (wanted,) = served().model.fill_mask(["walk [MASK]"], top_k=2)
  assert one["id"] == 7
  assert [x["id"] for x in one["masks"][0]] == [x.id for x in wanted.masks[0]]
  body = {"kind": "embed", "records": [{"text": "the", "text_b": "walk"}]}
  (one,) = post(ask, "/predict", body)["answers"]
  (wanted,) = served().model.embed(["the"], ["walk"], fields=("mean", "pooled"))
  np.testing.assert_allclose(one["mean"], wanted.mean, atol=2e-6)
  np.testing.assert_allclose(one["pooled"], wanted.pooled, atol=2e-6)


@pytest.mark.parametrize(
  ("body", "param"),
  [
    ({"kind": "classify", "records": [{"text": "a"}]}, "kind"),
    ({"kind": ["embed"], "records": [{"text": "a"}]}, "kind"),
    ({"records": [{"text": "no gap"}]}, "records"),
    ({"records": []}, "records"),
    ({"records": {"text": "a"}}, "records"),
    ({"records": ["a"]}, "records"),
    ({"records": [{"text": "[MASK]", "txt": "a"}]}, "records"),
    ({"records": [{"text": "[MASK]", "id": [1]}]}, "records"),
    ({"records": [{"text": "[MASK]"}], "top_k": 0}, "top_k"),
    ({"records": [{"text": "[MASK]"}], "top_k": True}, "top_k"),
    ({"kind": "embed", "records": [{"text": "a"}], "top_k": 3}, "top_k"),
  ],
)
def test_bad_records_are_refused_by_the_field(ask, body, param):
  assert post(ask, "/predict", body, 400)["error"]["param"] == param


def test_rerank_sorts_by_the_cosine_of_the_vectors(ask):
  documents = ["!", "walk the", "the walk"]
  body = {"query": "walk the", "documents": documents, "top_n": 2}
  body["return_documents"] = True
  found = post(ask, "/rerank", body)
  assert found["scored_by"] == "embed" and len(found["results"]) == 2
  best = found["results"][0]
  assert best["index"] == 1 and best["document"] == {"text": "walk the"}
  assert best["relevance_score"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
  "body",
  [
    {"query": "a"},
    {"query": 3, "documents": ["a"]},
    {"query": "a", "documents": []},
    {"query": "a", "documents": ["a", None]},
    {"query": "a", "documents": ["a"], "top_n": 2},
    {"query": "a", "documents": ["a"], "return_documents": "yes"},
    {"query": "a", "documents": ["a"], "label": "x"},
  ],
)
def test_bad_queries_are_refused(ask, body):
  post(ask, "/rerank", body, 400)


@pytest.mark.parametrize("kind", ["regress", "classify"])
def test_rerank_scores_pairs_with_the_head(kind):
  with serving(served(kind)) as ask:
    body = {"query": "the", "documents": ["walk", "!"]}
    if kind == "classify":  # it has three labels
      for wrong in ({}, {"label": "y"}, {"label": ["yes"]}):
        found = post(ask, "/rerank", body | wrong, 400)
        assert found["error"]["param"] == "label"
      # Nothing was computed for them.
      assert "bert_jax_texts_total 0.0" in ask("GET", "/metrics").text
      body["label"] = "yes"
    found = post(ask, "/rerank", body)
    assert found["scored_by"] == kind
    pairs = (["the"] * 2, ["walk", "!"])
    wanted = getattr(served(kind).model, kind)(*pairs)
    scores = [
      one.score if kind == "regress" else one.scores["yes"] for one in wanted
    ]
    got = {x["index"]: x["relevance_score"] for x in found["results"]}
    assert [got[0], got[1]] == pytest.approx(scores, rel=1e-5)


def test_several_models_are_told_apart_by_name():
  with serving(served(), served("classify", "labels")) as ask:
    body = {"records": [{"text": "the"}]}
    assert post(ask, "/predict", body, 400)["error"]["param"] == "model"
    found = post(ask, "/predict", body | {"model": "labels"})
    assert found["kind"] == "classify"
    found = post(ask, "/predict", body | {"model": "other"}, 404)
    assert found["error"]["code"] == "model_not_found"
    data = ask("GET", "/v1/models").json()["data"]
    assert [one["id"] for one in data] == ["small", "labels"]


def test_a_request_that_is_too_large_is_refused(ask):
  with serving(served(), request_texts=3, request_bytes=200) as limited:
    post(limited, "/v1/embeddings", {"input": ["a"] * 3})
    post(limited, "/v1/embeddings", {"input": ["a"] * 4}, 413)
    post(limited, "/v1/embeddings", {"input": "a" * 300}, 413)

    async def parts():
      for _ in range(3):
        yield b"x" * 90

    found = limited("POST", "/v1/embeddings", content=parts())
    assert found.status_code == 413


def test_a_document_is_ranked_whatever_the_limit(ask):
  with serving(served(), request_texts=1) as limited:
    body = {"query": "the", "documents": ["walk"]}
    assert len(post(limited, "/rerank", body)["results"]) == 1
    post(limited, "/rerank", {"query": "the", "documents": ["a", "b"]}, 413)
  with serving(served(), request_texts=1, queue_texts=1) as limited:
    post(limited, "/rerank", body, 413)  # waiting would not help


def test_a_full_queue_refuses_and_then_takes_again():
  with serving(served(), queue_texts=2, request_texts=2) as ask:

    async def together():
      body = {"input": ["the", "walk"]}
      return await asyncio.gather(
        *(ask.ask("POST", "/v1/embeddings", json=body) for _ in range(3))
      )

    found = asyncio.run(together())
    assert sorted(one.status_code for one in found) == [200, 429, 429]
    refused = next(one for one in found if one.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    post(ask, "/v1/embeddings", {"input": ["the", "walk"]})


def test_the_key_is_needed_where_something_is_computed():
  with serving(served(), key=KEY) as ask:
    body = {"input": "a"}
    for header in ({}, {"authorization": "Bearer no"}, {"authorization": KEY}):
      post(ask, "/v1/embeddings", body, 401, headers=header)
    key = {"authorization": f"Bearer {KEY}"}
    post(ask, "/v1/embeddings", body, headers=key)
    assert ask("GET", "/health").status_code == 200
    assert ask("GET", "/metrics").status_code == 401
    assert ask("GET", "/metrics", headers=key).status_code == 200


def test_health_is_not_good_before_the_models_are_there():
  with serving(served()) as ask:
    ask.server.models = {}
    ask.server._status = "starting"
    assert ask("GET", "/health").status_code == 503
    post(ask, "/v1/embeddings", {"input": "a"}, 503)
    ask.server.ready([served()])
    assert ask("GET", "/health").json()["status"] == "ok"
    ask.server.stop()
    assert ask("GET", "/health").status_code == 503


def test_metrics_count_requests_texts_and_tokens():
  with serving(served()) as ask:
    post(ask, "/v1/embeddings", {"input": TEXTS})
    post(ask, "/v1/embeddings", {}, 400)
    text = ask("GET", "/metrics").text
    for line in (
      'bert_jax_requests_total{path="/v1/embeddings",status="200"} 1.0',
      'bert_jax_requests_total{path="/v1/embeddings",status="400"} 1.0',
      "bert_jax_texts_total 3.0",
      "bert_jax_tokens_total 13.0",
      "bert_jax_waiting_texts 0.0",
    ):
      assert line in text.splitlines()


def test_the_page_describes_every_route_and_loads_nothing(ask):
  described = ask("GET", "/openapi.json").json()
  for path, methods in described["paths"].items():
    for method, route in methods.items():
      kwargs = {}
      if "requestBody" in route:
        content = route["requestBody"]["content"]["application/json"]
        kwargs = {"json": content["example"]}
      assert ask(method.upper(), path, **kwargs).status_code == 200, path
  page = ask("GET", "/")
  assert page.headers["content-type"].startswith("text/html")
  assert not re.search(r"(src|href)=.?https?:", page.text)
  assert ask("GET", "/nothing").json()["error"]["code"] == "no_such_route"
  assert ask("GET", "/predict").status_code == 405


@pytest.mark.slow
def test_no_request_waits_for_a_compilation():
  one = served("classify", "compiled")
  predictor = one.predictor("classify")
  count = predictor.compile_all()
  assert count == len(predictor.shapes()) == predictor._step._cache_size()
  with serving(one) as ask:
    rng = np.random.default_rng(0)
    for _ in range(12):
      records = [
        {"text": " ".join(["walk [MASK]"] * int(rng.integers(0, 9)))}
        for _ in range(int(rng.integers(1, 70)))
      ]
      post(ask, "/predict", {"records": records})
  assert predictor._step._cache_size() == count


# --- the start and the end ---


@pytest.mark.parametrize(
  ("texts", "found"),
  [
    (["a/b/"], [("b", "a/b/")]),
    (["x=a", "y=a"], [("x", "a"), ("y", "a")]),
    ([], None),
    (["a/b", "c/b"], None),
    (["=a"], None),
  ],
)
def test_names_of_models(texts, found):
  if found is None:
    with pytest.raises(server_lib.ServeError, match="--from"):
      server_lib.sources_of(texts)
    return
  got = [(one.name, one.path) for one in server_lib.sources_of(texts)]
  assert got == found


def test_a_port_in_use_is_an_error_before_a_model_is_read(launch, capsys):
  pytest.importorskip("uvicorn")
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    port = sock.getsockname()[1]
    assert launch("serve", "--from=no-such-model", f"--port={port}") == 2
  assert f"port {port}" in launching.message(capsys)


@pytest.mark.parametrize(
  ("arguments", "word"),
  [
    (["--port=70000"], "--port"),
    (["--host=no.such.host.invalid"], "--host"),
    (["--config.serve.queue_texts=3"], "queue_texts"),
    (["--config.serve.kinds=embed,sing"], "sing"),
    (["--config.serve.queue=3"], "queue_texts"),
  ],
)
def test_a_server_that_cannot_start_says_why(launch, capsys, arguments, word):
  assert launch("serve", "--from=x", *arguments) == 2
  assert word in launching.message(capsys)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
  """A server as users start one: its address and its process."""
  pytest.importorskip("uvicorn")
  folder = tmp_path_factory.mktemp("served")
  weights.write(small_models.make(), folder / "hf", "huggingface")
  environ = os.environ | {"BERT_JAX_API_KEY": KEY}
  process = subprocess.Popen(
    [
      sys.executable, "-m", "bert_jax.main", "serve", f"--from={folder / 'hf'}",
      "--port=0", "--config.predict.batch_tokens=96",
    ],
    cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environ,
  )  # fmt: skip
  try:
    line = process.stderr.readline()
    address = re.search(r"http://[\d.:]+", line)[0]
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    yield types.SimpleNamespace(address=address, process=process)
    process.kill()
    reader.join()
  finally:
    process.kill()
    process.wait()
    process.stderr.close()


def wait_until_ready(address, secs=120):
  end = time.monotonic() + secs
  seen = set()
  while time.monotonic() < end:
    try:
      with urllib.request.urlopen(f"{address}/health") as answer:
        seen.add(answer.status)
        return seen
    except urllib.error.HTTPError as error:
      seen.add(error.code)
      time.sleep(0.1)
  raise AssertionError(f"not ready after {secs} s: {seen}")


@pytest.mark.slow
def test_openai_asks_a_server_that_then_stops_in_order(process):
  openai = pytest.importorskip("openai")
  assert wait_until_ready(process.address) == {503, 200}
  client = openai.OpenAI(base_url=f"{process.address}/v1", api_key=KEY)
  found = client.embeddings.create(model="any", input=TEXTS)
  wanted = [one.mean for one in served().model.embed(TEXTS, fields=("mean",))]
  got = [one.embedding for one in found.data]
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
  plain = client.embeddings.create(
    model="any", input=TEXTS, encoding_format="float"
  )
  np.testing.assert_array_equal([x.embedding for x in plain.data], got)
  assert [one.id for one in client.models.list()] == ["hf"]
  with pytest.raises(openai.BadRequestError, match="token ids"):
    client.embeddings.create(model="any", input=[[1, 2]])
  with pytest.raises(openai.AuthenticationError):
    openai.OpenAI(
      base_url=f"{process.address}/v1", api_key="no"
    ).embeddings.create(model="any", input="a")

  body = json.dumps({"input": ["walk the"] * 2000}).encode()
  request = urllib.request.Request(
    f"{process.address}/v1/embeddings",
    body,
    {"Authorization": f"Bearer {KEY}"},
  )
  statuses = []

  def ask():
    with urllib.request.urlopen(request) as answer:
      statuses.append((answer.status, len(json.load(answer)["data"])))

  asking = [threading.Thread(target=ask) for _ in range(2)]
  for one in asking:
    one.start()
  time.sleep(0.3)
  process.process.send_signal(signal.SIGTERM)
  for one in asking:
    one.join()
  assert statuses == [(200, 2000)] * 2
  assert process.process.wait(20) == 0
