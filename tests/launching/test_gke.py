"""Tests of gke.py: the JobSets that a cluster is asked to run."""

import dataclasses
import json
import re
import subprocess

import pytest
import yaml

from bert_jax.launching import gke
from bert_jax.launching import jobs
from bert_jax.runtime import chips
from tests.support import jobset_schema

ARGUMENTS = ("train", "--config=tpu", "--workdir=gs://bucket/a b")


def make(topology="v5e:4x4", num_slices=1, **settings):
  found = topology and jobs.read_topology(topology, num_slices)
  given = {"image": "host/image:1"} | settings
  return jobs.Job("base", ARGUMENTS, found, num_slices, given)


def pod_of(job):
  (replicated,) = gke.manifest(job)["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
  ("job", "hosts", "per_host", "labels"),
  [
    (make("v5e:4x4"), 4, 4, ("tpu-v5-lite-podslice", "4x4")),
    (make("v5litepod-256", 2), 64, 4, ("tpu-v5-lite-podslice", "16x16")),
    (make("v5e:1x1"), 1, 1, ("tpu-v5-lite-podslice", "1x1")),
    (make("v5p-16", 4), 2, 4, ("tpu-v5p-slice", "2x2x2")),
    (make("v6e:8x8"), 16, 4, ("tpu-v6e-slice", "8x8")),
    (make("tpu7x:2x2x2", 2), 2, 4, ("tpu7x", "2x2x2")),
  ],
)
def test_a_slice_is_a_job_and_a_host_is_a_pod(job, hosts, per_host, labels):
  manifest = gke.manifest(job)
  (replicated,) = manifest["spec"]["replicatedJobs"]
  assert replicated["replicas"] == job.num_slices
  spec = replicated["template"]["spec"]
  assert spec["completions"] == spec["parallelism"] == hosts
  assert spec["completionMode"] == "Indexed"
  pod = spec["template"]["spec"]
  found = pod["nodeSelector"]
  assert found["cloud.google.com/gke-tpu-accelerator"] == labels[0]
  assert found["cloud.google.com/gke-tpu-topology"] == labels[1]
  (container,) = pod["containers"]
  for kind in ("requests", "limits"):
    assert container["resources"][kind] == {"google.com/tpu": per_host}
  # All chips of a slice are asked for, and none twice.
  assert hosts * per_host == job.topology.num_chips
  assert [*container["command"], *container["args"]] == ["bert-jax", *ARGUMENTS]
  exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
  annotations = manifest["metadata"].get("annotations", {})
  assert (exclusive in annotations) == (hosts > 1)
  assert pod.get("hostNetwork", False) == (job.num_slices > 1)


def test_what_is_asked_for_is_in_the_manifest():
  plain, asked = (
    make("v5e:4x4"),
    make(
      "v5e:4x4", spot=True, queue="q", max_restarts="7", namespace="team",
      service_account="robot", priority_class="low", grace_secs=60,
    ),
  )  # fmt: skip
  manifest = gke.manifest(asked)
  assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
  assert manifest["metadata"]["namespace"] == "team"
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
  pod = pod_of(asked)
  assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert "cloud.google.com/gke-spot" in [t["key"] for t in pod["tolerations"]]
  assert pod["serviceAccountName"] == "robot"
  assert pod["priorityClassName"] == "low"
  assert pod["terminationGracePeriodSeconds"] == 60
  text = gke.render(plain)
  for word in ("spot", "queue-name", "serviceAccount", "priorityClass"):
    assert word not in text
  assert yaml.safe_load(text) == gke.manifest(plain)


def test_the_folder_of_local_steps_is_one_of_the_node():
  flag = "--config.checkpoint.local_dir="
  words = ("train", f"{flag}/a", f"{flag}/mnt/steps", "--workdir=gs://b/run")
  job = jobs.Job("base", words, settings={"image": "i"})
  (container,) = pod_of(job)["containers"]
  (volume,) = pod_of(job)["volumes"]
  assert volume["hostPath"]["path"] == "/mnt/steps"
  (mount,) = container["volumeMounts"]
  assert mount == {"name": volume["name"], "mountPath": "/mnt/steps"}
  for other in (words[:1], ("train", f"{flag}relative")):
    job = jobs.Job("base", other, settings={"image": "i"})
    assert "volumes" not in pod_of(job)


@pytest.mark.parametrize(
  ("topology", "settings", "is_root"),
  [("v5e:4x4", {}, True), ("v5e:4x4", {"privileged": False}, False),
   (None, {}, False)],
)  # fmt: skip
def test_the_user_of_an_image_may_write_to_the_folder_of_the_node(
  topology, settings, is_root
):
  job = make(topology, **settings)
  pod = pod_of(dataclasses.replace(job, local_dir="/mnt/steps"))
  (container,) = pod["containers"]
  (mount,) = container["volumeMounts"]
  assert mount["mountPath"] == "/mnt/steps"
  assert ("initContainers" not in pod) == is_root
  if not is_root:  # DirectoryOrCreate makes a folder that root alone writes to
    (opening,) = pod["initContainers"]
    assert opening["securityContext"]["runAsUser"] == 0
    assert opening["command"] == ["chmod", "1777", mount["mountPath"]]
    assert opening["volumeMounts"] == [mount]
    assert opening["image"] == container["image"]
    assert "resources" not in opening  # it asks for no chips
  assert "initContainers" not in pod_of(job)


def test_a_job_without_tpu_asks_for_processors():
  pod = pod_of(make(None, cpu="16", memory_gib=64))
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"cpu": 16, "memory": "64Gi"}
  assert "nodeSelector" not in pod and "securityContext" not in container


def test_kubernetes_leaves_the_words_of_a_command_as_they_are():
  words = ("predict", "--text=$(HOME) costs $5, $$6", "--output=gs://b/$$(x)")
  job = jobs.Job("base", words, settings={"image": "i"})
  (container,) = pod_of(job)["containers"]
  # Kubernetes: $$ is $, $(NAME) of a variable is its value.
  parts = [re.split(r"\$\$", word) for word in container["args"]]
  assert not any("$(" in part for word in parts for part in word)
  assert tuple("$".join(word) for word in parts) == words


def test_a_host_of_v3_that_is_a_slice_has_another_label():
  label = "cloud.google.com/gke-tpu-accelerator"
  assert pod_of(make("v3:2x2"))["nodeSelector"][label] == "tpu-v3-device"
  assert pod_of(make("v3:4x4"))["nodeSelector"][label] == "tpu-v3-slice"


def test_a_job_starts_again_where_that_helps_and_fails_otherwise():
  manifest = gke.manifest(make("v5e:4x4", 2))
  for status in range(1, 256):
    again = status in (69, 75)
    wanted = "RestartJobSet" if again else "FailJobSet"
    assert jobset_schema.outcome(manifest, status, False) == wanted, status
    assert jobset_schema.outcome(manifest, status, True) == "RestartJobSet"


def all_jobs():
  for chip in chips.CHIPS:
    for name in chip.topologies:
      for num_slices in (1, 2):
        if num_slices == 1 or chips.parse_topology(name).num_hosts > 1:
          yield make(name, num_slices)
          yield make(name, num_slices, spot=True, queue="q", privileged=False)
  yield make(None)


def test_the_fields_are_those_of_jobset():
  for job in all_jobs():
    assert not jobset_schema.problems(gke.manifest(job))


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (
      lambda m: m["spec"].update(failurePolicies={}),
      "no field failurePolicies",
    ),
    (lambda m: m["metadata"].update(name="x" * 60), "too long"),
    (
      lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
      "no action Fail",
    ),
    (
      lambda m: rule_of(m)["onExitCodes"].update(values=[75, 69]),
      "ascending",
    ),
    (
      lambda m: m["spec"]["replicatedJobs"][0].update(replicas="2"),
      "is no int",
    ),
  ],
)
def test_the_check_of_jobsets_finds_a_mistake(change, problem):
  manifest = gke.manifest(make())
  change(manifest)
  assert any(problem in one for one in jobset_schema.problems(manifest))


def rule_of(manifest):
  (replicated,) = manifest["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]["podFailurePolicy"]["rules"][1]


def test_kubernetes_accepts_the_jobs_of_a_jobset():
  validate = pytest.importorskip("kubernetes_validate")
  words = ("train", "--config.checkpoint.local_dir=/mnt/steps")
  local = jobs.Job("base", words, settings={"image": "i"})
  for job in (local, *all_jobs()):
    for one in jobset_schema.jobs_of(gke.manifest(job)):
      validate.validate(one, "1.31", strict=True)
  one["spec"]["podFailurePolicy"]["rules"][0]["onPodCondition"] = []
  with pytest.raises(validate.ValidationError):
    validate.validate(one, "1.31", strict=True)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"image": ""}, ["--image"]),
    ({"colour": "red"}, ["colour", "namespace"]),
    ({"max_restarts": "-1"}, ["--max_restarts=-1", "number"]),
    ({"spot": "maybe"}, ["--spot=maybe", "True"]),
    ({"namespace": ""}, ["--set=namespace="]),
  ],
)
def test_a_wrong_setting_is_refused(settings, words):
  with pytest.raises(jobs.LaunchError) as caught:
    gke.render(make(**settings))
  assert all(word in str(caught.value) for word in words)


def test_an_image_is_needed():
  with pytest.raises(jobs.LaunchError, match="--image="):
    gke.render(jobs.Job("base", ARGUMENTS))


class Cluster:
  """Answers kubectl as a cluster with JobSet and one queue would."""

  def __init__(self, exists=False, knows_jobsets=True):
    self.asked, self.created = [], []
    self.exists, self.knows_jobsets = exists, knows_jobsets

  def __call__(self, command, input=None, **kwargs):
    del kwargs
    self.asked.append(command)
    words = [word for word in command if not word.startswith("-")]
    out, error = "", ""
    if words[1] == "api-resources":
      out = "pods\njobsets.jobset.x-k8s.io\n" if self.knows_jobsets else "pods"
    elif words[1:3] == ["get", "localqueue"] and words[3] != "q":
      error = "Error from server (NotFound): no such queue"
    elif words[1] == "create" and self.exists:
      error = "Error from server (AlreadyExists): it already exists"
    elif words[1] == "create" and "--dry-run=server" not in command:
      self.created.append(yaml.safe_load(input))
    return subprocess.CompletedProcess(command, bool(error), out, error)


def test_a_job_is_created_once_after_the_cluster_was_asked(monkeypatch):
  cluster = Cluster()
  monkeypatch.setattr(jobs.subprocess, "run", cluster)
  job = make("v5e:4x4", queue="q", context="mine", namespace="team")
  assert "base" in gke.send(job)
  assert cluster.created == [gke.manifest(job)]
  assert all("--context=mine" in command for command in cluster.asked)
  dry = [c for c in cluster.asked if "--dry-run=server" in c]
  assert len(dry) == 1 and cluster.asked[-1] not in dry


@pytest.mark.parametrize(
  ("cluster", "settings", "words"),
  [
    (Cluster(), {"queue": "other"}, ["--queue=other", "localqueue"]),
    (Cluster(exists=True), {}, ["base already", "another --name", "stop"]),
    (Cluster(knows_jobsets=False), {}, ["JobSet", "kubectl apply"]),
  ],
)
def test_what_a_cluster_refuses_is_said(monkeypatch, cluster, settings, words):
  monkeypatch.setattr(jobs.subprocess, "run", cluster)
  with pytest.raises(jobs.LaunchError) as caught:
    gke.send(make(**settings))
  assert all(word in str(caught.value) for word in words)
  assert not cluster.created


def test_a_machine_without_kubectl_is_told_how_to_get_it(monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(jobs.LaunchError, match="kubectl is not installed; run"):
    gke.send(make())


def test_the_state_of_a_jobset_is_one_line():
  jobset = gke.manifest(make())
  assert gke.describe(jobset) == "base: Running, 0 of 100 restarts"
  jobset["status"] = {
    "restarts": 3, "restartsCountTowardsMax": 2, "terminalState": "Failed",
    "conditions": [
      {"type": "StartupPolicyCompleted", "status": "False"},
      {"type": "Failed", "status": "True", "message": "jobset failed"},
    ],
  }  # fmt: skip
  assert gke.describe(json.loads(json.dumps(jobset))) == (
    "base: Failed, 2 of 100 restarts; Failed: jobset failed"
  )


def event(pod, reason, message):
  return {
    "reason": reason, "message": message, "involvedObject": {"name": pod}
  }  # fmt: skip


@pytest.mark.parametrize(
  ("reason", "message", "remedy"),
  [
    ("FailedScaleUp", "Node scale up failed: GCE quota exceeded.", "Quotas"),
    (
      "FailedScheduling",
      "0/4 nodes are available: 4 node(s) didn't match Pod's node\n"
      "affinity/selector.",
      "--topology",
    ),
    ("FailedScheduling", "4 Insufficient google.com/tpu.", "in use"),
    ("FailedScheduling", "something else", "something else"),
  ],
)
def test_status_says_why_pods_wait_and_what_to_do(reason, message, remedy):
  others = [event("other-0", "FailedScaleUp", "GCE quota exceeded")]
  events = [event("base-0", "Scheduled", "x"), event("base-1", reason, message)]
  said = gke.why_pending(["base-0", "base-1"], [*others, *events])
  assert said.startswith("base-1 has no node: ") and "\n" not in said
  assert remedy in said
  assert not gke.why_pending(["base-0"], [*others, *events])
