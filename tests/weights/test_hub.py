"""Models of the hub by name: a server in this process stands for the hub."""

import json
import os
import pathlib
import sys

import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import load
from bert_jax.runtime import hub
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import jobs
from bert_jax.weights import convert as convert_mode
from configs import base
from configs import convert as convert_config
from tests.support import hub_server
from tests.support.small_models import assert_same
from tests.support.small_models import make

pytest.importorskip("huggingface_hub")

OLD, NEW = "a" * 40, "b" * 40


def files_of(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model as a folder of Hugging Face."""
  folder = tmp_path_factory.mktemp("model") / "x"
  weights.write(make("classify"), folder, "huggingface")
  return folder


@pytest.fixture
def server(model, tmp_path, monkeypatch):
  """A running hub, and an empty cache; the current folder is empty, too."""
  files = files_of(model)
  without = {k: v for k, v in files.items() if "safetensors" not in k}
  old = files | {"config.json": files["config.json"] + b"\n"}
  models = {
    "some/model": {OLD: old, NEW: files | {"pytorch_model.bin": b"no"}},
    "some/tokenizer": {NEW: without},
  }
  monkeypatch.chdir(tmp_path)
  for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
  with hub_server.serving(models) as found:
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    yield found


def test_only_names_without_a_folder_are_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert hub.is_name("some/model") and hub.is_name("some/model@v1.0")
  (tmp_path / "some").mkdir()
  assert hub.is_name("hub://some/model")
  for path in (
    "some/model", "model", "/tmp/model", "./model", "a/b/c", "gs://a/b", "~/x",
    "some/model@", "../x", "a//b", "",
  ):  # fmt: skip
    assert not hub.is_name(path), path


def test_a_model_is_read_by_its_name_and_its_revision_is_known(server, model):
  found = weights.read("some/model")
  assert found.source == f"some/model@{NEW}"
  assert_same(found.params, weights.read(model).params)
  assert found.tokenizer.fingerprint == load.load_tokenizer(model).fingerprint
  # Of two forms of weights, one is downloaded.
  paths = [path for method, path in server.requests if method == "GET"]
  assert not any("pytorch_model.bin" in path for path in paths)
  assert any("model.safetensors" in path for path in paths)


@pytest.mark.parametrize("revision", [OLD, NEW])
def test_a_revision_is_pinned_by_its_name(server, revision):
  found = weights.read(f"some/model@{revision}")
  assert found.source == f"some/model@{revision}"


def test_a_checkpoint_of_a_run_is_not_asked_of_the_hub(server):
  with pytest.raises(weights.WeightsError, match="--checkpoint=best"):
    weights.read("some/model", "best")


def test_a_run_goes_on_from_the_revision_that_it_recorded(model, tmp_path):
  workdir = str(tmp_path / "run")
  weights.write(weights.read(model), workdir, "bert_jax")
  run = runs.read_run(workdir)
  name = "hub://some/model"
  assert jobs._pinned(name, workdir) == name
  runs.write_run(workdir, run | {"init_from_source": f"some/model@{OLD}"})
  assert jobs._pinned(name, workdir) == f"{name}@{OLD}"
  assert jobs._pinned("hub://some/mod", workdir) == "hub://some/mod"
  # A branch that moves on is pinned, too, unless another one is asked for.
  config = run["config"] | {"init_from": f"{name}@main"}
  runs.write_run(
    workdir,
    run | {"config": config, "init_from_source": f"some/model@{OLD}"},
  )
  assert jobs._pinned(f"{name}@main", workdir) == f"{name}@{OLD}"
  assert jobs._pinned(f"{name}@v2", workdir) == f"{name}@v2"
  # A resumed run, which reads no weights, keeps the record.
  runs.write_run(workdir, run)
  assert runs.read_run(workdir)["init_from_source"] == f"some/model@{OLD}"


def test_the_weights_of_a_job_are_those_of_the_hub(server):
  config = base.get_config()
  config.init_from = "some/model"
  config.data.seq_len = 8
  job, found = jobs.open_job(config, "", is_abstract=True)
  assert found.source == f"some/model@{NEW}"
  # No path of this machine, so that it is the same run from any folder.
  assert job.config.init_from == "hub://some/model"
  plain = settings.plain(job.config)
  kept = settings.map_paths(plain, settings.absolute)
  assert kept["init_from"] == "hub://some/model"


def test_a_folder_that_is_gone_is_not_asked_of_the_hub(tmp_path):
  run = {"config": {"init_from": str(tmp_path / "some/model")}, "data_hash": ""}
  runs.write_run(str(tmp_path), run)
  assert not jobs._is_of_hub("some/model", str(tmp_path))
  run["config"]["init_from"] = "hub://some/model"
  runs.write_run(str(tmp_path), run)
  assert jobs._is_of_hub("some/model", str(tmp_path))


def test_a_tokenizer_is_read_without_weights(server, model):
  found = load.load_tokenizer("some/tokenizer")
  assert found.fingerprint == load.load_tokenizer(model).fingerprint
  assert not any("safetensors" in path for _, path in server.requests)


@pytest.mark.parametrize("is_offline", [True, False])
def test_the_cache_is_enough(server, monkeypatch, is_offline):
  """Offline by the variable, or because nothing answers."""
  weights.read("some/model")
  if is_offline:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  else:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  before = len(server.requests)
  assert weights.read("some/model").source == f"some/model@{NEW}"
  assert weights.read(f"some/model@{NEW}").source == f"some/model@{NEW}"
  assert len(server.requests) == before


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("some/none", "has no model some/none"),
    ("some/model@v9", "no revision v9"),
    ("some/gated", "gated"),
    ("some/tokenizer", "no weights that this program reads"),
  ],
)
def test_what_the_hub_does_not_have_is_said(server, name, wanted):
  with pytest.raises(weights.WeightsError, match=wanted):
    weights.read(name)


def test_offline_without_a_cache_says_what_to_do(server, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(weights.WeightsError, match="HF_HUB_OFFLINE is set"):
    weights.read("some/model")
  monkeypatch.delenv("HF_HUB_OFFLINE")
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(weights.WeightsError, match="127.0.0.1:9 cannot be"):
    weights.read("some/model")


def test_without_the_extra_the_error_names_it(server, monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(weights.WeightsError, match=r"bert_jax\[hub\]"):
    weights.read("some/model")
  with pytest.raises(hub.HubError, match=r"bert_jax\[hub\]"):
    hub.check_push("some/new")


def convert(source, target, push="", **settings):
  config = convert_config.get_config()
  config.convert.update({"to": "huggingface", **settings})
  return convert_mode.convert(config, str(source), str(target), push)


def test_a_converted_model_is_pushed(server, model, monkeypatch, capsys):
  monkeypatch.setenv("HF_TOKEN", "hf_good")
  convert(model, "out", push="some/new")
  assert server.pushed["some/new"].keys() == files_of("out").keys()
  assert f"some/new@{'c' * 40}" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("push", "token", "wanted"),
  [
    ("new", "hf_good", "wanted OWNER/NAME"),
    ("some/new@v1", "hf_good", "wanted OWNER/NAME"),
    ("some/new", "", "no token"),
  ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
  server, model, monkeypatch, push, token, wanted
):
  monkeypatch.setenv("HF_TOKEN", token)
  with pytest.raises(hub.HubError, match=wanted):
    convert(model, "out", push=push)
  assert not os.path.exists("out") and not server.pushed


def test_a_token_that_the_hub_refuses_is_an_error(server, model, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_bad")
  with pytest.raises(hub.HubError, match="some/new"):
    convert(model, "out", push="some/new")
  assert json.loads(pathlib.Path("out/config.json").read_text())
