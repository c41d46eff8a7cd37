"""Tests of `bert-jax launch`: what is sent, and what is refused before."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
import yaml

from bert_jax import modes as launching_modes
from bert_jax.launching import engines
from bert_jax.launching import jobs
from bert_jax.launching import launch as launching_mode
from bert_jax.launching import plans
from bert_jax.launching import slurm
from bert_jax.launching import vm
from bert_jax.launching import xpk
from bert_jax.runtime import chips
from bert_jax.runtime import config_files
from bert_jax.runtime import settings
from tests.support import launching

launch = launching.launch
TRAIN = ("--", "train", "--config=tpu", "--workdir=gs://bucket/run")
GKE = ("launch", "--engine=gke", "--name=base", "--image=host/image:1")
SLICE = ("--topology=v5e:4x4", "--plan=none")


@pytest.fixture
def asked(monkeypatch):
  """The programs that a launch starts; all succeed."""
  found = []

  def run(command, **kwargs):
    del kwargs
    found.append(command)
    return subprocess.CompletedProcess(
      command, 0, "jobsets.jobset.x-k8s.io\n", ""
    )

  monkeypatch.setattr(jobs.subprocess, "run", run)
  return found


def test_a_dry_run_prints_what_kubectl_takes_and_starts_nothing(
  launch, capsys, asked
):
  assert launch(*GKE, *SLICE, "--spot", "--dry_run", *TRAIN) == 0
  manifest = yaml.safe_load(capsys.readouterr().out)
  assert manifest["metadata"]["name"] == "base"
  (replicated,) = manifest["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  assert pod["containers"][0]["args"] == list(TRAIN[1:])
  assert not asked


def test_a_folder_of_local_steps_in_the_config_file_is_mounted(
  launch, capsys, asked, monkeypatch, tmp_path
):
  own = tmp_path / "mine.py"
  own.write_text(
    "from bert_jax.configs import tpu\n\n"
    "def get_config():\n"
    "  c = tpu.get_config()\n"
    "  c.checkpoint.local_dir = '/mnt/steps'\n"
    "  c.checkpoint.local_every_steps = 100\n"
    "  return c\n"
  )
  monkeypatch.setattr(launching_mode, "_is_own", lambda _: False)
  job = ("--", "train", f"--config={own}", "--workdir=gs://bucket/run")
  flag = "--config.checkpoint.local_dir="
  for more, folder in (((), "/mnt/steps"), ((f"{flag}/disk",), "/disk")):
    assert launch(*GKE, *SLICE, "--dry_run", *job, *more) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert [x["hostPath"]["path"] for x in pod["volumes"]] == [folder]
    words = ("launch", "--engine=vm", "--name=base", "--zone=a", "--image=i")
    assert launch(*words, *SLICE, "--dry_run", *job, *more) == 0
    assert f"--volume={folder}:{folder}" in capsys.readouterr().out
  assert not asked


def test_what_is_printed_is_what_is_sent(launch, capsys, monkeypatch):
  sent = []

  def run(command, input=None, **kwargs):
    del kwargs
    if input:
      sent.append((command, input))
    found = "jobsets.jobset.x-k8s.io\n"
    return subprocess.CompletedProcess(command, 0, found, "")

  assert launch(*GKE, *SLICE, "--dry_run", *TRAIN) == 0
  printed = capsys.readouterr().out
  monkeypatch.setattr(jobs.subprocess, "run", run)
  assert launch(*GKE, *SLICE, *TRAIN) == 0
  assert [text for _, text in sent] == [printed, printed]
  said = capsys.readouterr().out.splitlines()
  # The commands that it suggests are commands.
  for line in said[1:]:
    values = launching.parse(*shlex.split(line)[1:])
    assert values.mode == "launch" and values.name == "base"
    assert values.file in launching_mode.ACTIONS


@pytest.mark.parametrize(
  ("words", "parts"),
  [
    ((*GKE, *SLICE), ["after ' -- '"]),
    ((*GKE, *SLICE, "--"), ["no command"]),
    (("launch", *SLICE, *TRAIN), ["--engine=gke"]),
    (("launch", "--engine=gke", *SLICE, *TRAIN), ["--name="]),
    ((*GKE, "--plan=none", *TRAIN), ["--topology"]),
    ((*GKE[:3], *SLICE, *TRAIN), ["--image="]),
    ((*GKE, "--topology=v5e:3x5", *TRAIN), ["v5e:3x5", "4x4"]),
    ((*GKE, "--topology=v9:4x4", *TRAIN), ["v9:4x4", "unknown"]),
    ((*GKE, "--topology=v5e:32x32", *TRAIN), ["largest", "256"]),
    ((*GKE, "--topology=v5e:2x2", "--num_slices=2", *TRAIN), ["single host"]),
    ((*GKE, *SLICE, "--num_slices=0", *TRAIN), ["--num_slices=0"]),
    ((*GKE, *SLICE, "--name=Base_1", *TRAIN), ["Base_1", "t-base-1"]),
    ((*GKE, *SLICE, f"--name={'x' * 41}", *TRAIN), ["40"]),
    ((*GKE, *SLICE, "--zone=a", *TRAIN), ["--zone", "xpk"]),
    ((*GKE, *SLICE, "--set=colour=red", *TRAIN), ["colour", "namespace"]),
    ((*GKE, *SLICE, "--set=image=x", *TRAIN), ["give --image="]),
    ((*GKE, *SLICE, "--set=nothing", *TRAIN), ["NAME=VALUE"]),
    ((*GKE, *SLICE, "--", "trian"), ["the command of the job", "train"]),
    ((*GKE, *SLICE, "--", "demo"), ["does not send demo"]),
    ((*GKE, *SLICE, *TRAIN, "--config.seed=many"), ["seed"]),
    ((*GKE, *SLICE, *TRAIN, "--config.optim.lr=1"), ["lr"]),
    ((*GKE, *SLICE, *TRAIN, "--topology=v5e:4x4"), ["flag of", "not of train"]),
    ((*GKE, *SLICE, "--", "train", "--config=tpu"), ["--workdir"]),
    (
      (*GKE, *SLICE, "--", "train", "--config=tpu", "--workdir=runs/x"),
      ["--workdir=runs/x", "gs://BUCKET/x"],
    ),
    (
      (*GKE, *SLICE, *TRAIN, f"--config.data.dir={os.getcwd()}"),
      ["--config.data.dir=", "gcloud storage cp"],
    ),
    (
      (*GKE, *SLICE, "--", "prepare", "--config=pretrain",
       "--input=gs://bucket/text", "--output=gs://bucket/data"),
      ["prepare", "leave out --topology"],
    ),
    (
      (*GKE, *SLICE, "--", "sweep", "--config=glue:from=gs://b/w,data=gs://b/d",
       "--workdir=gs://b/sweep"),
      ["one host", "sweep --engine=gke"],
    ),
    *[
      ((*GKE, *SLICE, *TRAIN, f"--config.mesh.{axis}={size}"), ["devices of"])
      for axis, size in (("fsdp", 3), ("tensor", 64), ("data", 7))
    ],
    (("launch", "watch", "--engine=gke", "--name=base"), ["status, logs"]),
    (("train", *TRAIN), ["only launch takes"]),
    (
      ("launch", "--engine=vm", "--name=base", "--zone=a", "--image=i",
       "--topology=tpu7x:2x2x1", *TRAIN),
      ["TPU VMs of tpu7x", "--engine=gke"],
    ),
    (
      ("launch", "--engine=slurm", "--name=base", *SLICE, "--", "train",
       "--config=tpu", "--workdir=/shared/run"),
      ["--set"],
    ),
    (
      ("launch", "--engine=slurm", "--name=base", "--", "train",
       "--config=tpu", "--workdir=runs/x"),
      ["relative", os.path.abspath("runs/x")],
    ),
    (
      ("launch", "--engine=xpk", "--name=base", "--image=i", *SLICE, *TRAIN),
      ["--cluster="],
    ),
    (("launch", "logs", "--engine=xpk", "--name=base"), ["kubectl logs"]),
    ((*GKE, *SLICE, *TRAIN, "--config.data.dir=s3://b/data"), ["s3://b/data"]),
    (
      (*GKE, *SLICE, "--", "train", "--config=tpu", "--workdir=s3://b/run"),
      ["--workdir=s3://b/run", "gs://"],
    ),
    *[
      (
        (*GKE, "--", "prepare", "--config=pretrain", f"--input={given}",
         "--output=gs://b/data"),
        [f"--input={given}", "gs://BUCKET"],
      )
      for given in ("no/such/*.txt", "tfds:/no/such/folder")
    ],
    *[
      (
        ("launch", "--engine=vm", "--name=base", "--zone=a", "--image=i", *more,
         "--", "prepare", "--config=pretrain", "--input=gs://b/text",
         "--output=gs://b/data"),
        ["prepare", "--engine=gke or --engine=slurm"],
      )
      for more in ((), ("--topology=v5e:4x4",))
    ],
    ((*GKE, *SLICE, "--set=cpu=4", *TRAIN), ["--set=cpu=4", "without a TPU"]),
    (
      (*GKE, "--set=privileged=True", "--", "prepare", "--config=pretrain",
       "--input=gs://b/text", "--output=gs://b/data"),
      ["--set=privileged=True", "TPU slices"],
    ),
    *[
      (
        ("launch", "--engine=xpk", "--name=base", "--image=i", "--cluster=c",
         f"--set={name}=x", *SLICE, *TRAIN),
        [f"--set={name}=x", flag],
      )
      for name, flag in (
        ("tpu-type", "--topology"), ("num_slices", "--num_slices"),
        ("workload", "--name"), ("command", "' -- '"),
      )
    ],
    *[
      (
        ("launch", action, "--engine=gke", "--name=base", *flag.split()),
        [part],
      )
      for action, flag, part in (
        ("stop", "--plan=none", "--plan"),
        ("stop", "--topology=v5e:4x4", "--topology"),
        ("stop", "--set=namespce=team", "'namespce'"),
        ("status", "--set=namespce=team", "'namespce'"),
        ("stop", "--engine=xpk --set=namespce=team", "--set=namespce="),
        ("status", "--dry_run", "--dry_run"),
      )
    ],
  ],
)  # fmt: skip
def test_a_job_that_could_not_run_is_refused(
  launch, capsys, asked, words, parts
):
  assert launch(*words) == 2
  said = capsys.readouterr().err
  assert all(part in said for part in parts), said
  assert not asked


def test_a_config_file_of_this_machine_is_refused(
  launch, capsys, tmp_path, asked
):
  path = tmp_path / "mine.py"
  shutil.copy(launching.ROOT / "configs" / "tpu.py", path)
  job = ("--", "train", f"--config={path}", "--workdir=gs://bucket/run")
  assert launch(*GKE, *SLICE, *job) == 2
  assert "image does not have" in capsys.readouterr().err
  shipped = launching.ROOT / "configs" / "tpu.py"
  job = ("--", "train", f"--config={shipped}", "--workdir=gs://bucket/run")
  assert launch(*GKE, *SLICE, "--dry_run", *job) == 0


def test_a_model_of_the_hub_is_seen_everywhere(launch, capsys, asked):
  job = ("--", "train", "--config=tpu", "--config.init_from=OWNER/NAME")
  words = (*GKE, *SLICE, "--dry_run", *job, "--workdir=gs://bucket/run")
  assert launch(*words) == 0
  slurm_words = ("launch", "--engine=slurm", "--name=base", "--dry_run", *job)
  assert launch(*slurm_words, "--workdir=/shared/run") == 0
  assert launch(*words[:-2], "--config.init_from=hub://OWNER/NAME",
                words[-1]) == 0  # fmt: skip
  assert not asked


SWEEP = """
from bert_jax.sweeps import sweep
def get_config():
  return sweep.make([
    sweep.trial("{config}", {{"seed": 1, "data.dir": "{data}"}})
  ])
"""


@pytest.mark.parametrize(
  ("data", "is_refused"), [("gs://b/data", False), ("HERE", True)]
)
def test_the_paths_of_trials_are_looked_at(
  launch, capsys, asked, tmp_path, data, is_refused
):
  tmp_path.joinpath("data").mkdir()
  data = data.replace("HERE", str(tmp_path / "data"))
  (tmp_path / "mine.py").write_text(SWEEP.format(config="tpu", data=data))
  words = ("sweep", f"--config={tmp_path}/mine.py", "--workdir=gs://b/sweep")
  command = launching_modes._read_command(words)
  keys = [key for key in command.read if key.startswith("--config.data.dir of")]
  assert [command.read[key] for key in keys] == [data]
  if is_refused:
    with pytest.raises(jobs.LaunchError, match=r"trial .*--config\.data\.dir="):
      launching_mode.check_paths(command, shares_files=False)


@pytest.mark.parametrize("engine", ["gke", "vm", "slurm", "xpk"])
def test_a_dry_stop_prints_what_would_run_and_stops_nothing(
  launch, capsys, asked, engine
):
  words = ("launch", "stop", f"--engine={engine}", "--name=base")
  assert launch(*words, "--dry_run") == 0
  printed = capsys.readouterr().out.splitlines()
  assert not asked and len(printed) == 1
  assert launch(*words) == 0
  assert [shlex.join(command) for command in asked] == printed


def test_every_slice_of_vms_is_stopped(launch, asked):
  words = ("launch", "stop", "--engine=vm", "--name=base", "--zone=z")
  assert launch(*words, "--num_slices=3") == 0
  assert {command[5] for command in asked} == {"base-0", "base-1", "base-2"}
  for command in asked:
    assert "touch base.stop; sudo docker stop" in command[-1]
    assert "--worker=all" in command and "--zone=z" in command


def test_a_bucket_that_is_not_there_is_named(launch, capsys, monkeypatch):
  def run(command, **kwargs):
    del kwargs
    assert command[0] == "gcloud"  # nothing is sent
    error = "ERROR: (gcloud.storage) gs://bucket not found: 404.\nmore"
    return subprocess.CompletedProcess(command, 1, "", error)

  monkeypatch.setattr(launching_mode.shutil, "which", lambda name: name)
  monkeypatch.setattr(jobs.subprocess, "run", run)
  assert launch(*GKE, *SLICE, *TRAIN) == 2
  said = capsys.readouterr().err
  for word in ("gs://bucket", "404", "buckets create", "--location"):
    assert word in said


def test_flags_may_stand_in_a_file(launch, capsys, tmp_path):
  path = tmp_path / "cluster.flags"
  path.write_text("--engine=gke\n--image=host/image:1\n--spot\n")
  words = ("launch", f"--flagfile={path}", "--name=base", *SLICE, "--dry_run")
  assert launch(*words, *TRAIN) == 0
  assert "gke-spot" in capsys.readouterr().out


# --- plans --------------------------------------------------------------------

PLAN = {
  "fits": True, "topology": "v5e:4x4", "num_slices": 1, "num_chips": 16,
  "hbm_bytes_per_device": 3 * 2**30, "hbm_available_bytes": 15 * 2**30,
  "predicted_step_secs": 0.5, "predicted_tokens_per_sec": 1e6,
  "total_steps": 7200, "predicted_hours": 1.0, "predicted_chip_hours": 16.0,
  "collectives": [],
}  # fmt: skip


@pytest.fixture
def planner(monkeypatch, tmp_path):
  """Plans that are asked for; each is PLAN with the slices that it is for."""
  made = []
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(plans.importlib.metadata, "version", lambda name: "1")

  def make(config, topology, num_slices=1):
    made.append((list(config), topology, num_slices))
    return PLAN | {"topology": topology, "num_slices": num_slices}

  monkeypatch.setattr(plans, "make", make)
  return made


def test_the_plan_is_shown_and_made_once(launch, capsys, planner):
  def say(*more):
    words = (*GKE, "--topology=v5e:4x4", "--dry_run", *TRAIN, *more)
    assert launch(*words) == 0
    return capsys.readouterr().err

  said = say("--config.data.dir=gs://bucket/data")
  for figure in ("3.00 of 15.00 GiB", "1.00 hours", "16.00 chip-hours"):
    assert figure in said
  # What only the hosts can read is not asked of the plan.
  assert planner == [(["--config=tpu"], "v5e:4x4", 1)]
  say("--config.data.dir=gs://bucket/data", "--config.seed=7")
  assert len(planner) == 1  # found again
  say("--config.data.batch_size=64")
  assert len(planner) == 2


def test_a_plan_that_does_not_fit_stops_the_launch(
  launch, capsys, tmp_path, asked
):
  path = tmp_path / "plan.json"
  words = (*GKE, "--topology=v5e:4x4", f"--plan={path}", *TRAIN)
  path.write_text(json.dumps(PLAN | {"fits": False}))
  assert launch(*words) == 1
  assert "does not fit" in capsys.readouterr().err
  path.write_text(json.dumps(PLAN | {"num_slices": 2}))
  assert launch(*words) == 2
  assert "2 x v5e:4x4" in capsys.readouterr().err
  path.write_text("[]")
  assert launch(*words) == 2
  assert not asked


def plan_runner(monkeypatch, found, status):
  """Has `bert-jax plan` write these plans, by the ending of their names."""

  def run(command, **kwargs):
    del kwargs
    (output,) = [w for w in command if w.startswith("--output=")]
    stem = output.removeprefix("--output=").removesuffix(".json")
    for name, plan in found.items():
      pathlib.Path(f"{stem}{name}.json").write_text(json.dumps(plan))
    return subprocess.CompletedProcess(command, status, "", "it broke")

  monkeypatch.setattr(plans.subprocess, "run", run)


def test_the_plans_of_all_phases_are_added(monkeypatch):
  small = PLAN | {"total_steps": 100, "predicted_hours": 2.0}
  large = PLAN | {"hbm_bytes_per_device": 9 * 2**30}
  plan_runner(monkeypatch, {"": small, "-long": large}, 0)
  plan = plans.make([], "v5e:4x4")
  assert plan["total_steps"] == 7300 and plan["predicted_hours"] == 3.0
  assert plan["predicted_chip_hours"] == 32.0
  assert plan["hbm_bytes_per_device"] == 9 * 2**30
  said = plans.describe(plan)
  assert "9.00 of 15.00" in said and "2 phases" in said
  plan_runner(monkeypatch, {"": small, "-long": large | {"fits": False}}, 1)
  with pytest.raises(plans.DoesNotFitError, match=r"v5e:4x4.* 9\.00 GiB"):
    plans.make([], "v5e:4x4")
  # The second phase broke.
  for status in (1, 2):
    plan_runner(monkeypatch, {"": small}, status)
    with pytest.raises(plans.PlanError, match="it broke"):
      plans.make([], "v5e:4x4")


def test_a_plan_of_another_config_is_named(launch, capsys, tmp_path):
  path = tmp_path / "plan.json"
  words = (*GKE, "--topology=v5e:4x4", f"--plan={path}", "--dry_run", *TRAIN)
  config = settings.plain(config_files.load("tpu"))
  path.write_text(json.dumps(PLAN | {"config": config}))
  assert launch(*words, "--config.data.dir=gs://b/data") == 0
  assert "another config" not in capsys.readouterr().err
  config["data"]["batch_size"] = 7
  path.write_text(json.dumps(PLAN | {"config": config}))
  assert launch(*words) == 0
  said = capsys.readouterr().err
  assert "another config" in said and "data.batch_size=7" in said
  # Of a training in phases every file is needed.
  phases = "--config.train.phases=('a data.seq_len=128', 'b data.seq_len=256')"
  assert launch(*words, phases) == 2
  assert "plan-b.json" in capsys.readouterr().err


def test_without_the_compiler_the_user_chooses(launch, capsys, monkeypatch):
  monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: None)
  assert launch(*GKE, "--topology=v5e:4x4", *TRAIN) == 2
  said = capsys.readouterr().err
  assert "bert_jax[tpu]" in said and "--plan=none" in said


# --- engines ------------------------------------------------------------------


def make(topology, num_slices=1, **settings):
  found = jobs.read_topology(topology, num_slices)
  return jobs.Job("base", TRAIN[1:], found, num_slices, settings)


def test_xpk_is_told_the_slice_and_when_to_start_again():
  job = make("v5p:4x4x8", 2, cluster="c", **{"docker-image": "i"})
  command = xpk.command(job)
  options = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
  assert command[:3] == ["xpk", "workload", "create"]
  assert options.pop("tpu-type") == "v5p-4x4x8"
  assert options.pop("num-slices") == "2"
  assert options.pop("restart-on-exit-codes") == "69,75"
  assert shlex.split(options.pop("command")) == ["bert-jax", *TRAIN[1:]]
  assert options == {
    "workload": "base", "max-restarts": "100", "cluster": "c",
    "docker-image": "i",
  }  # fmt: skip


def test_xpk_looks_for_a_job_where_it_was_sent():
  job = jobs.Job("base", (), settings={"cluster": "c", "namespace": "team"})
  (command,) = xpk.stop(job)
  assert {"--cluster=c", "--namespace=team", "--workload=base"} < set(command)


def test_xpk_gets_switches_without_a_value():
  place = {"cluster": "c", "docker-image": "i"}
  job = make("v5e:4x4", **place, **{"enable-debug-logs": "True", "spot": False})
  words = xpk.command(job)
  assert "--enable-debug-logs" in words
  assert not any(word.startswith("--spot") for word in words)


def test_a_slice_of_vms_is_made_used_and_removed():
  job = make("v5e:4x4", zone="z", image="us-docker.pkg.dev/p/i:1", spot=True)
  commands = [words for _, words in vm.commands(job)]
  assert [words[4] for words in commands] == [
    "create", "ssh", "ssh", "ssh", "delete",
  ]  # fmt: skip
  assert all("--zone=z" in words for words in commands)
  create, _, start, _, _ = commands
  assert {"--accelerator-type=v5litepod-16", "--spot"} < set(create)
  assert "--worker=all" in start
  # An unusual shape is not what its number of chips alone would give.
  odd = make("v5p:4x4x16", zone="z", image="i")
  words = vm.commands(odd)[0][1]
  assert {"--type=V5P", "--topology=4x4x16"} < set(words)


def test_several_slices_of_vms_are_one_queued_resource():
  job = make("v5e:4x4", 2, zone="z", image="i")
  commands = [words for _, words in vm.commands(job)]
  assert commands[0][3:5] == ["queued-resources", "create"]
  assert {"--node-count=2", "--node-prefix=base"} < set(commands[0])
  started = [w[5] for w in commands if w[4] == "ssh" and "--worker=all" in w]
  assert started == ["base-0", "base-1"]
  assert commands[-1][3:5] == ["queued-resources", "delete"]


@pytest.mark.parametrize(
  ("statuses", "starts", "last"),
  [([75, 69, 0], 3, 0), ([2], 1, 2), ([75, 75, 75, 75], 3, 75)],
)
def test_the_loop_of_a_host_starts_again_where_asked(
  tmp_path, statuses, starts, last
):
  """The shell runs the very command, with a docker that only counts."""
  docker = tmp_path / "sudo"
  docker.write_text(
    "#!/bin/sh\necho x >> count\n"
    f"set -- {' '.join(map(str, statuses))}\n"
    "shift $(($(wc -l < count) - 1))\nexit $1\n"
  )
  docker.chmod(0o755)
  job = make("v5e:4x4", zone="z", image="i", max_restarts=2)
  (start,) = [
    words[-1].removeprefix("--command=")
    for _, words in vm.commands(job)
    if "--worker=all" in words
  ]
  program = f"{start}\nwait $!; echo $? > status"
  subprocess.run(
    ["sh", "-c", program], cwd=tmp_path, check=True, timeout=60,
    env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
  )  # fmt: skip
  assert len((tmp_path / "count").read_text().split()) == starts
  assert int((tmp_path / "status").read_text()) == last


def test_slurm_is_asked_for_what_set_names(launch, capsys, monkeypatch):
  words = (
    "launch", "--engine=slurm", "--name=base", "--set=slurm_partition=gpu",
    "--set=nodes=2", "--dry_run", "--", "train", "--config=tpu",
    "--workdir=/shared/run",
  )  # fmt: skip
  assert launch(*words) == 0
  printed = capsys.readouterr().out
  assert "slurm_partition: gpu" in printed and "nodes: 2" in printed
  monkeypatch.setenv("PATH", "")
  assert launch(*words[:5], *words[6:]) == 2
  assert "sinfo is not installed" in capsys.readouterr().err


def test_a_misspelt_setting_of_slurm_is_found_without_slurm(launch, capsys):
  pytest.importorskip("submitit")
  words = ("launch", "--engine=slurm", "--name=base", "--dry_run",
           "--set=slurm_partion=gpu")  # fmt: skip
  job = ("--", "train", "--config=tpu", "--workdir=/shared/run")
  assert launch(*words, *job) == 2
  assert "partion" in capsys.readouterr().err
  words = (*words[:4], "--set=slurm_srun_args=--mpi=none -v")
  assert launch(*words, *job) == 0
  printed = capsys.readouterr().out
  assert "['--mpi=none', '-v']" in printed
  assert "-m bert_jax.main train" in printed  # what is run
  assert launch(*words[:4], *job) == 0
  assert "--kill-on-bad-exit=1" in capsys.readouterr().out


def test_slurm_looks_at_the_users_own_jobs_of_a_month(asked):
  job = jobs.Job("base", ())
  slurm.status(job)
  assert any(word.startswith("--starttime=") for word in asked[0])
  assert slurm.stop(job) == [["scancel", "--me", "--name=base"]]


def test_submitit_runs_a_job_on_this_machine(tmp_path, monkeypatch):
  pytest.importorskip("submitit")
  monkeypatch.chdir(launching.ROOT)
  folder = str(tmp_path / "slurm")
  settings = {"folder": folder, "cluster": "local", "timeout_min": 2}
  job = jobs.Job("base", ("configs",), settings=settings)
  sent = []
  executor = slurm.executor

  def remember(*arguments):
    made = executor(*arguments)
    submit = made.submit
    made.submit = lambda call: sent.append(submit(call)) or sent[-1]
    return made

  monkeypatch.setattr(slurm, "executor", remember)
  assert folder in slurm.send(job)
  assert sent[0].result() == 0
  show = slurm.logs(job)
  text = "".join(pathlib.Path(p).read_text() for p in show[3:])
  assert "pretrain" in text


def test_every_setting_of_a_flag_is_one_of_the_flags():
  for name, engine in engines.ENGINES.items():
    assert set(engine.flags) <= set(jobs.FLAGS), name
  taken = {flag for one in engines.ENGINES.values() for flag in one.flags}
  assert taken == set(jobs.FLAGS)


# --- against the programs of others ------------------------------------------


def xpk_python():
  """The Python that runs xpk, whose environment is its own."""
  program = os.environ.get("XPK") or shutil.which("xpk")
  if not program:
    pytest.skip("xpk is not installed; XPK=/path/to/xpk names it")
  return program, str(pathlib.Path(program).parent / "python")


@pytest.mark.slow
def test_slices_are_those_that_xpk_knows():
  _, python = xpk_python()
  program = (
    "import json; from xpk.core import system_characteristics as s; "
    "print(json.dumps({k: [v.topology, v.vms_per_slice, v.chips_per_vm, "
    "v.gke_accelerator, v.gce_machine_type, v.device_type] "
    "for k, v in s.UserFacingNameToSystemCharacteristics.items() "
    "if v.accelerator_type == s.AcceleratorType.TPU}))"
  )
  done = subprocess.run(
    [python, "-c", program], capture_output=True, text=True, check=True
  )
  table, compared = json.loads(done.stdout.splitlines()[-1]), 0
  for chip in chips.CHIPS:
    known = {
      row[0]: row for name, row in table.items()
      if name.rpartition("-")[0] == chip.slice_name
    }  # fmt: skip
    for sides, (_, hosts, per_host, label, machine, name) in known.items():
      found = chips.parse_topology(f"{chip.name}:{sides}")
      if sides == "1x1x1":  # a part of a host, which is not offered here
        continue
      if chip.name != "v4" or list(found.shape) == sorted(found.shape):
        assert not found.why_not_offered(), found.name
      assert found.num_hosts == hosts and found.chips_per_host == per_host
      assert chip.gke_accelerator == label
      assert machine == f"{chip.gke_machine}-{per_host}t"
      assert found.slice_name == name
      compared += 1
  assert compared > 100


@pytest.mark.slow
@pytest.mark.parametrize(
  ("topology", "num_slices"),
  [("v5e:4x4", 1), ("v5p:4x4x8", 2), ("v6e:2x2", 1), ("tpu7x:2x2x1", 1)],
)
def test_xpk_accepts_what_is_sent_to_it(topology, num_slices, tmp_path):
  program, _ = xpk_python()
  place = {"cluster": "c", "project": "p", "zone": "us-west4-a"}
  job = make(topology, num_slices, **place, **{"docker-image": "host/i:1"})
  command = [program, *xpk.command(job)[1:], "--dry-run", "--skip-validation"]
  done = subprocess.run(
    command, capture_output=True, text=True, check=False, cwd=tmp_path,
    stdin=subprocess.DEVNULL, timeout=120,
    env=os.environ | {"HOME": str(tmp_path)},
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_gcloud_has_the_flags_of_the_commands_for_vms():
  if not shutil.which("gcloud"):
    pytest.skip("gcloud is not installed")
  seen: dict[str, set[str]] = {}
  for job in (
    make("v5e:4x4", zone="z", project="p", image="i", spot=True),
    make("v5p:4x4x16", zone="z", image="i"),
    make("v5e:4x4", 2, zone="z", project="p", image="i", spot=True),
  ):
    for _, words in vm.commands(job):
      used = {w.partition("=")[0] for w in words if w.startswith("--")}
      seen.setdefault(" ".join(words[:5]), set()).update(used)
  wide = {"--project", "--format"}  # of every command of gcloud
  for command, used in seen.items():
    shown = subprocess.run(
      [*command.split(), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(flag in shown for flag in used - wide), (command, used)
