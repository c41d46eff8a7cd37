"""Every character that a file system allows works in a path, or is refused."""

import csv
import io
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.models import params as param_trees
from bert_jax.runtime import checkpoint
from bert_jax.runtime import metrics_log
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from tests.support import launching
from tests.support.run_checks import depends_on_clock

launch = launching.launch

CHARACTERS = (
  *"[]*? '\"#%&,:=@{}$~|;!^`()<>\t\n\x01-",
  "[a]",
  "[!a]",
  "[0:1]",
  "**",
  "@2",
  "%41",
  "$HOME",
  "e\u0301",  # in two characters
  "\u00e9",  # in one
  "\u65e5\u672c\U0001f600",
)
ALL = "-x" + "".join(CHARACTERS) + "x"
REFUSED = {
  "backslash": "a\\b",
  "gs:": "gs:",
  "not UTF-8": os.fsdecode(b"\xff\xfe"),
}


def flat(pretrained):
  return param_trees.flatten(pretrained.params)


def assert_same_weights(got, want):
  got, want = flat(got), flat(want)
  assert got.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not depends_on_clock(k)}
    for row in metrics_log.read_metrics(workdir)
  ]


def listed(path):
  """A path as --input takes it, which is a list."""
  text = io.StringIO()
  csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="").writerow([path])
  return text.getvalue()


def assert_works(folder, run, launch):
  """Trains, goes on, and reads what was saved, in every way there is."""
  folder.mkdir()
  data, workdir = folder / "data", folder / "run"
  shutil.copytree(run.config.data.dir, data)
  config = folder.parent / "config.py"
  # An option that is None there cannot be set on the command line.
  text = json.dumps(settings.plain(run.config) | {"init_from": ""})
  config.write_text(
    "import json, ml_collections\n"
    "def get_config():\n"
    f"  return ml_collections.ConfigDict(json.loads({text!r}))\n"
  )
  common = (f"--config={config}", f"--config.data.dir={data}")
  common += (f"--workdir={workdir}", "--compile_cache=off")
  assert launch("--mode=train", *common) == 0
  assert rows(str(workdir)) == rows(run.workdir)
  shutil.rmtree(workdir / "checkpoints" / "8")
  assert launch("--mode=train", *common) == 0
  assert rows(str(workdir)) == rows(run.workdir)
  want = weights.read(run.workdir)
  assert_same_weights(weights.read(workdir), want)
  before = sorted(os.listdir(workdir))
  assert launch("--mode=train", "--replay_step=8", *common) == 0
  assert launch("--mode=evaluate", *common) == 0
  assert launch("--mode=doctor", *common) == 0
  found = set(os.listdir(workdir)) - set(before)
  assert found == {"replay-8.json", "evaluation.json"}
  for source, form in (
    (workdir, "bert_jax"),
    (folder / "bert_jax", "tf1"),
    (folder / "tf1", "flax"),
    (folder / "flax", "huggingface"),
  ):
    args = ("--mode=convert", f"--config={launching.ROOT}/configs/convert.py")
    args += (f"--input={listed(source)}", f"--output={folder / form}")
    assert launch(*args, f"--config.convert.to={form}") == 0
    assert_same_weights(weights.read(folder / form), want)
  source, answers = folder / "lines.jsonl", folder / "answers.jsonl"
  source.write_text('{"text": "sun [MASK] sun"}\n')
  predicted = (
    "--mode=predict", f"--input={listed(source)}", f"--output={answers}",
    "--compile_cache=off",
  )  # fmt: skip
  assert launch(*predicted, f"--workdir={workdir}") == 0
  assert json.loads(answers.read_text())
  new = folder / "new"
  starts = (f"--config.init_from={folder / 'bert_jax'}", f"--workdir={new}")
  assert launch("--mode=train", *common, *starts) == 0
  assert saved_steps.steps_in(str(new / "checkpoints")) == [6, 8]
  # Nothing was written beside it.
  assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
    ["config.py", folder.name]
  )


@pytest.mark.slow
def test_a_folder_named_with_all_characters_works_in_every_mode(
  finished_run, tmp_path, launch
):
  assert_works(tmp_path / ALL, finished_run, launch)


@pytest.mark.parametrize(
  "name",
  [
    ALL,
    "[a]",
    *(pytest.param(name, marks=pytest.mark.slow) for name in CHARACTERS),
  ],
)
def test_checkpoints_are_kept_below_a_folder_of_any_name(name, tmp_path):
  workdir = str(tmp_path / name / "run")
  params = {"w": jnp.arange(32.0).reshape(8, 4)}
  shapes, rest_shapes = (
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), x
    )
    for x in (params, {"step": jnp.int32(0)})
  )
  for step in (1, 2, 3):
    saved = checkpoint.Checkpoints(
      workdir, keep=2, best_metric="loss", best_mode="min"
    )
    if step > 1:
      assert saved.restore_newest(shapes, rest_shapes)[0] == step - 1
    saved.save(step, params, {"step": jnp.int32(step)}, {"loss": 1 / step})
    saved.close()
  assert saved_steps.steps_in(f"{workdir}/checkpoints") == [2, 3]
  for folder in ("checkpoints", "best"):
    found = checkpoint.read_params(f"{workdir}/{folder}/3", shapes)
    np.testing.assert_array_equal(found["w"], params["w"])
  assert os.listdir(tmp_path) == [name]


def test_data_is_prepared_below_any_folder(tmp_path, launch):
  folder = tmp_path / ALL
  folder.mkdir()
  text, data = folder / "text.txt", folder / "data"
  text.write_text("\n".join("sun moon star\nsky rain wind\n" * 40))
  settings = (
    "--config.prepare.vocab_size=18", "--config.data.seq_len=16",
    "--config.prepare.num_workers=1", "--config.prepare.held_out_rate=0.2",
  )  # fmt: skip
  args = (f"--config={launching.ROOT}/configs/base.py", *settings)
  args += (f"--input={listed(text)}", f"--output={data}")
  for _ in range(2):
    assert launch("--mode=prepare", *args) == 0
  assert (data / "manifest.json").exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == [ALL]


def test_a_folder_that_ends_in_gs_and_a_colon_is_refused_with_that_reason():
  for path in ("/data/gs:", "/data/gs:/run", "/data/logs:", "/data/logs:/run"):
    with pytest.raises(checkpoint.CheckpointError, match='name ends in "gs:"'):
      checkpoint.check_path(path)
  for path in ("/data/gs", "/data/gs:x/run", "/data/logs:x", "/data/log:/run"):
    checkpoint.check_path(path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_that_cannot_hold_checkpoints_is_refused_before_all_else(
  name, finished_run, tmp_path, launch, capsys, caplog
):
  # Reports of tests that several processes run hold text that is UTF-8.
  caplog.set_level("WARNING", "bert_jax")
  folder = tmp_path / REFUSED[name]
  data = finished_run.config.data.dir
  common = (f"--config={launching.ROOT}/configs/base.py",)
  common += (f"--config.data.dir={data}", "--compile_cache=off")
  for mode in ("train", "evaluate"):
    args = (f"--mode={mode}", *common, f"--workdir={folder / 'run'}")
    assert launch(*args) == 2
    said = launching.message(capsys)
    assert repr(str(folder))[1:-1] in said, said
  status = launch("--mode=doctor", *common, f"--workdir={folder / 'run'}")
  assert status == 2 or "BAD  workdir" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
  shutil.copytree(finished_run.workdir, folder)
  before = sorted(p for p in tmp_path.rglob("*"))
  with pytest.raises(ValueError, match=r"(?s).*rename the folder"):
    weights.read(folder)
  with pytest.raises(ValueError, match=r"(?s).*rename the folder"):
    weights.write(
      weights.read(finished_run.workdir), folder / "new", "bert_jax"
    )
  assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_step_that_is_not_on_disk_ends_the_run(tmp_path, monkeypatch):
  """Whatever the reason; here Orbax saves nothing of the arrays."""
  monkeypatch.setattr(checkpoint._PATH_CLASS, "glob", lambda *_: iter(()))
  saved = checkpoint.Checkpoints(
    str(tmp_path), keep=2, best_metric="", best_mode="min"
  )
  params, rest = {"w": np.ones((4, 2))}, {"step": np.int32(1)}
  saved.save(1, params, rest, {})
  with pytest.raises(checkpoint.SaveError, match="checkpoints/1 was saved"):
    saved.wait()
  saved.save(2, params, rest, {})
  with pytest.raises(checkpoint.SaveError, match="checkpoints/2 was saved"):
    saved.close()


def test_a_folder_beside_it_that_a_pattern_would_match_is_not_looked_at(
  tmp_path,
):
  for name in ("abc", "a*c"):
    (tmp_path / name / "x_1").mkdir(parents=True)
  (tmp_path / "abc" / "x_2").mkdir()
  path = checkpoint.epath.Path(tmp_path / "a*c")
  assert list(path.glob("x_*")) == [path / "x_1"]
  assert pathlib.Path(list(path.glob("x_*"))[0]) == tmp_path / "a*c" / "x_1"
