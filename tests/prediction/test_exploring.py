"""What is shown of a model's inside equals what the model computes."""

import functools
import re
import threading

import numpy as np
import pytest

from bert_jax.kinds import answers
from bert_jax.models import params as param_trees
from bert_jax.prediction import exploring
from bert_jax.prediction import model as model_lib
from tests.support import small_models


@functools.cache
def explorer():
  model = model_lib.Model(small_models.make(), "MODEL")
  return exploring.Explorer(model)


def test_attention_is_the_softmax_of_queries_and_keys():
  found = explorer().attention("walk the !", "walked")
  maps = np.array(found["maps"])
  size = len(found["tokens"])
  assert found["tokens"][0] == "[CLS]"
  assert maps.shape == (2, small_models.MODEL["num_heads"], size, size)
  np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-3)
  # The first layer by hand, from the embeddings.
  ids, states, _ = explorer()._encoded("walk the !", "walked")
  flat = param_trees.flatten(explorer().model.pretrained.params)
  query, key = (
    np.einsum("LD,DNH->NLH", states[0], flat[f"{at}/kernel"])
    + flat[f"{at}/bias"][:, None]
    for at in (f"encoder/layer_0/attention/{name}" for name in ("query", "key"))
  )
  scores = np.einsum("NQH,NKH->NQK", query, key) / query.shape[-1] ** 0.5
  exps = np.exp(scores - scores.max(-1, keepdims=True))
  want = exps / exps.sum(-1, keepdims=True)
  np.testing.assert_allclose(maps[0], want, atol=1e-3)
  assert len(ids) == size


def test_the_last_row_of_the_lens_fills_masks():
  (wanted,) = explorer().model.fill_mask(["walk [MASK] !"], top_k=3)
  found = explorer().lens("walk [MASK] !", top_k=3)
  assert len(found["words"]) == 3  # the embeddings and two layers
  place = found["tokens"].index("[MASK]")
  got = found["words"][-1][place]
  assert [word for word, _ in got] == [x.token for x in wanted.masks[0]]
  for (_, score), one in zip(got, wanted.masks[0], strict=True):
    assert score == pytest.approx(one.score, abs=1e-4)


def test_two_texts_are_compared_by_the_ratio_of_a_word():
  texts = ["the [MASK] !", "walked [MASK] !"]
  found = explorer().probe(texts, ["walk", "walked", "moon"], top_k=2)
  assert found["unknown"] == ["walked", "moon"]  # two pieces; not known
  (one,) = found["words"]
  first, second = one["scores"]
  assert one["log_ratio"] == pytest.approx(np.log(first / second))
  assert [len(best) for best in found["best"]] == [2, 2]


def test_the_plane_keeps_the_largest_variance():
  texts = ["walk", "walk walk", "the !", "! ! !"]
  found = explorer().projection(texts)
  points = np.array(found["points"])
  one = explorer().model.embed(texts, fields=("mean",))
  vectors = np.stack([x.mean for x in one])
  centered = vectors - vectors.mean(0)
  shares = (points**2).sum(0) / (centered**2).sum()
  np.testing.assert_allclose(shares, found["shares"], atol=1e-3)
  assert found["shares"][0] >= found["shares"][1]
  np.testing.assert_allclose(points.mean(0), 0, atol=1e-4)


@pytest.mark.parametrize(
  ("method", "arguments", "message"),
  [
    ("attention", (3,), "text"),
    ("attention", ("\ud800",), "half"),
    ("attention", ("walk " * 200,), "tokens"),
    ("probe", (["no gap"],), "MASK"),
    ("probe", (["[MASK] [MASK]"],), "2"),
    ("projection", (["one", "two"],), "3"),
  ],
)
def test_what_cannot_be_shown_is_refused(method, arguments, message):
  with pytest.raises(answers.PredictError, match=message):
    getattr(explorer(), method)(*arguments)


def test_a_model_without_the_head_shows_the_rest():
  model = model_lib.Model(small_models.make("classify", without=["mlm"]), "M")
  found = exploring.Explorer(model)
  assert not found.fills_masks
  assert found.attention("walk")["tokens"]
  with pytest.raises(answers.PredictError, match="fill_mask"):
    found.lens("walk")


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
  playwright = pytest.importorskip("playwright.sync_api")
  uvicorn = pytest.importorskip("uvicorn")
  import shutil

  from bert_jax.prediction.serving import explore
  from bert_jax.prediction.serving import server as server_lib

  browser_path = shutil.which("chromium")
  if browser_path is None:
    pytest.skip("there is no chromium")
  site = explore.Explore()
  site.ready(explorer())
  sock = server_lib.open_socket("127.0.0.1", 0)
  port = sock.getsockname()[1]
  server = uvicorn.Server(
    uvicorn.Config(site.app, log_level="warning", lifespan="off")
  )
  thread = threading.Thread(target=server.run, args=([sock],))
  thread.start()
  try:
    with playwright.sync_playwright() as play:
      browser = play.chromium.launch(
        executable_path=browser_path, args=["--no-sandbox"]
      )
      page = browser.new_page()
      asked, problems = [], []
      page.on("request", lambda request: asked.append(request.url))
      page.on("pageerror", lambda error: problems.append(str(error)))
      page.goto(f"http://127.0.0.1:{port}/")
      page.fill("#a1", "walk the !")
      page.fill("#p1", "the [MASK] !")
      page.fill("#p2", "walk [MASK] !")
      page.fill("#words", "walk, the, moon")
      page.fill("#l1", "walk [MASK]")
      page.fill("#t1", "walk\nthe walk\n! !")
      for part in ("attention", "probe", "lens", "projection"):
        page.click(f"#{part} button")
        page.wait_for_selector(f"#{part}[data-done=yes]", timeout=60_000)
      assert page.locator("#attention canvas").count() == 4
      assert page.locator("#attention td.cell").count() == 25
      assert page.locator("#lens tr").count() == 4
      assert page.locator("#projection circle").count() == 3
      assert "moon" in page.inner_text("#probe")
      page.fill("#l1", "walk " * 200)
      page.click("#lens button")
      page.wait_for_function(
        "document.querySelector('#lens .error').textContent.includes('tokens')"
      )
      page.screenshot(path=tmp_path / "explore.png", full_page=True)
      browser.close()
    assert not problems
    assert all(re.match(rf"http://127.0.0.1:{port}/", url) for url in asked)
  finally:
    server.should_exit = True
    thread.join()
    site.close()
