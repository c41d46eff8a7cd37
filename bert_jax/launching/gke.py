"""Runs jobs on TPU slices of a GKE cluster, as JobSets of Kubernetes.

A JobSet holds one Job a slice, and a Job one pod a host. GKE tells each pod its
number and its neighbours, which jax reads. How a pod ends decides what follows:

- The node was taken away (the pod has the condition DisruptionTarget), or the
  status is one of those that ask for a restart: the pod counts as failed, with
  it its Job, and the JobSet starts all Jobs again, up to max_restarts times.
- Any other status: the rule FailJob names the reason PodFailurePolicy, for
  which the JobSet fails.

Source: kubernetes.io/docs/concepts/workloads/controllers/job (Pod failure
policy); jobset.sigs.k8s.io/docs/tasks/failure_policy (JobSet 0.6 and newer);
docs.cloud.google.com/tpu/docs/tpu-gke-multislice (labels of nodes, one node
pool a slice, the network of the host).
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any

import yaml

from bert_jax.launching import jobs

CONTAINER = "bert-jax"
_QUEUE = "kueue.x-k8s.io/queue-name"
_ACCELERATOR = "cloud.google.com/gke-tpu-accelerator"
_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
_SPOT = "cloud.google.com/gke-spot"
_NODE_POOL = "cloud.google.com/gke-nodepool"
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
_CHIPS = "google.com/tpu"

# Default by name; None = required.
SETTINGS: dict[str, Any] = {
  "image": None,  # the container image
  "queue": "",  # of Kueue, a LocalQueue of the namespace
  "spot": False,  # nodes that may be taken away
  "max_restarts": jobs.MAX_RESTARTS,
  "namespace": "default",
  "context": "",  # of kubectl; "" = the current one
  "service_account": "",  # of Kubernetes, which may act as one of the cloud's
  "priority_class": "",
  "grace_secs": 300,  # between SIGTERM and SIGKILL, for the last checkpoint
  "keep_secs": 7 * 86400,  # after the end, until its record is deleted
  # Without a TPU; a pod on TPUs has its whole host.
  "cpu": 8,
  "memory_gib": 32,
  # The devices of TPUs belong to root.
  "privileged": True,
}


# Settings of jobs without a TPU alone, and of jobs on TPUs alone.
_WITHOUT_TPU = ("cpu", "memory_gib")
_WITH_TPU = ("privileged",)


def settings(job: jobs.Job) -> dict[str, Any]:
  """Returns the settings of a job, with defaults; raises LaunchError."""
  found = jobs.settings_of(job.settings, SETTINGS, "gke")
  for name in _WITHOUT_TPU if job.topology else _WITH_TPU:
    if name in job.settings:
      raise jobs.LaunchError(
        f"{jobs.shown(name)}{job.settings[name]} is for jobs "
        + (
          "without a TPU; a pod on TPUs has its whole host, so leave it out"
          if job.topology
          else "on TPU slices, which --topology names; leave it out"
        )
      )
  return found


def check(given: Mapping[str, Any]) -> None:
  """Checks settings of which some may be missing; raises LaunchError."""
  jobs.check_settings(given, SETTINGS, "gke")


def manifest(job: jobs.Job) -> dict[str, Any]:
  """Returns the JobSet of a job, as `kubectl create` takes it.

  Raises:
    jobs.LaunchError: a setting is missing or wrong.
  """
  given = settings(job)
  metadata: dict[str, Any] = {
    "name": job.name,
    "namespace": given["namespace"],
    "labels": {"app.kubernetes.io/managed-by": CONTAINER},
  }
  if given["queue"]:
    metadata["labels"][_QUEUE] = given["queue"]
  if job.num_hosts > 1:  # each slice is a node pool
    metadata["annotations"] = {_EXCLUSIVE: _NODE_POOL}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "ttlSecondsAfterFinished": given["keep_secs"],
      "failurePolicy": {
        "maxRestarts": given["max_restarts"],
        "rules": [
          {
            "name": "failed",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      "replicatedJobs": [
        {
          "name": "slice",
          "replicas": job.num_slices,
          "template": {"spec": _job_spec(job, given)},
        }
      ],
    },
  }


def _job_spec(job: jobs.Job, given: dict[str, Any]) -> dict[str, Any]:
  """Returns the Job of one slice: a pod for each host."""
  return {
    "completionMode": "Indexed",
    "completions": job.num_hosts,
    "parallelism": job.num_hosts,
    "backoffLimit": 0,  # one pod that fails is a job that fails
    "podFailurePolicy": {
      "rules": [
        {
          "action": "Count",
          "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "NotIn",
            "values": list(jobs.RESTART_STATUSES),
          },
        },
      ]
    },
    "template": {"spec": _pod_spec(job, given)},
  }


def _pod_spec(job: jobs.Job, given: dict[str, Any]) -> dict[str, Any]:
  """Returns the pod of one host."""
  container: dict[str, Any] = {
    "name": CONTAINER,
    "image": given["image"],
    # Kubernetes replaces $(NAME) by a variable, and $$ by $.
    "command": [job.command[0]],
    "args": [word.replace("$", "$$") for word in job.command[1:]],
  }
  selector: dict[str, str] = {}
  tolerations = []
  if job.topology:
    amounts: dict[str, Any] = {_CHIPS: job.topology.chips_per_host}
    selector[_ACCELERATOR] = job.topology.gke_accelerator
    selector[_TOPOLOGY] = job.topology.sides
    tolerations.append({"key": _CHIPS, "operator": "Exists"})
    if given["privileged"]:
      container["securityContext"] = {"privileged": True, "runAsUser": 0}
  else:
    amounts = {"cpu": given["cpu"], "memory": f"{given['memory_gib']}Gi"}
  container["resources"] = {"requests": amounts, "limits": dict(amounts)}
  if given["spot"]:
    selector[_SPOT] = "true"
    tolerations.append(
      {"key": _SPOT, "operator": "Equal", "value": "true"}
      | {"effect": "NoSchedule"}
    )
  spec: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": given["grace_secs"],
  }
  if selector:
    spec |= {"nodeSelector": selector, "tolerations": tolerations}
  if job.num_slices > 1:  # the network between slices is that of the hosts
    spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
  if folder := job.host_folder:
    path = {"path": folder, "type": "DirectoryOrCreate"}
    spec["volumes"] = [{"name": "local", "hostPath": path}]
    container["volumeMounts"] = [{"name": "local", "mountPath": folder}]
    if "securityContext" not in container:
      # The node makes the folder as root's, for which fsGroup does nothing. The
      # user of the image may then make a folder of its own in it, as in /tmp.
      opening = {
        "name": "open-local",
        "image": given["image"],
        "command": ["chmod", "1777", folder],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": container["volumeMounts"],
      }
      spec["initContainers"] = [opening]
  if given["service_account"]:
    spec["serviceAccountName"] = given["service_account"]
  if given["priority_class"]:
    spec["priorityClassName"] = given["priority_class"]
  return spec | {"containers": [container]}


def render(job: jobs.Job) -> str:
  """Returns the manifest of a job as YAML."""
  return yaml.safe_dump(manifest(job), sort_keys=False, width=80)


def _kubectl(
  job: jobs.Job, *words: str, in_namespace: bool = True
) -> list[str]:
  """Returns a command of kubectl in the cluster and namespace of a job."""
  given = job.settings
  context = str(given.get("context", ""))
  namespace = str(given.get("namespace", SETTINGS["namespace"]))
  return [
    "kubectl",
    *([f"--context={context}"] if context else []),
    *([f"--namespace={namespace}"] if in_namespace else []),
    *words,
  ]


def send(job: jobs.Job) -> str:
  """Creates the JobSet of a job, after asking the cluster whether it would.

  Returns:
    How to follow the job.

  Raises:
    jobs.LaunchError: the cluster cannot be reached, has no JobSet or no such
      queue, or refuses the job.
  """
  text = render(job)
  groups = _kubectl(job, "api-resources", "-oname", in_namespace=False)
  if "jobsets.jobset.x-k8s.io" not in jobs.run(groups).split():
    raise jobs.LaunchError(
      "the cluster does not know JobSets; install them once, by kubectl apply "
      "--server-side -f https://github.com/kubernetes-sigs/jobset/releases/"
      "download/v0.8.0/manifests.yaml"
    )
  if queue := settings(job)["queue"]:
    try:
      jobs.run(_kubectl(job, "get", "localqueue", queue, "-oname"))
    except jobs.LaunchError as error:
      raise jobs.LaunchError(
        f"--queue={queue}: the namespace has no such queue of Kueue ({error}); "
        "kubectl get localqueue lists its queues; without --queue the job does "
        "not wait for one"
      ) from error
  try:
    jobs.run(_kubectl(job, "create", "--dry-run=server", "-f", "-"), text)
    jobs.run(_kubectl(job, "create", "-f", "-"), text)
  except jobs.LaunchError as error:
    if "AlreadyExists" in str(error) or "already exists" in str(error):
      raise jobs.LaunchError(
        f"the cluster has a job {job.name} already; give another --name, or "
        f"remove it by bert-jax launch stop --engine=gke --name={job.name}"
      ) from error
    raise
  return f"sent {job.name}"


def status(job: jobs.Job) -> str:
  """Returns a few lines on the state of a job."""
  read = _kubectl(job, "get", "jobset", job.name, "-ojson")
  pods = _kubectl(job, "get", "pods", f"-l{_of(job)}", "-owide")
  state, shown = describe(json.loads(jobs.run(read))), jobs.run(pods)
  lines = [state, shown.rstrip()]
  if " Pending " in shown:
    of_pods = "--field-selector=involvedObject.kind=Pod"
    events = jobs.run(_kubectl(job, "get", "events", of_pods, "-ojson"))
    names = [x.split()[0] for x in shown.splitlines() if " Pending " in x]
    if reason := why_pending(names, json.loads(events)["items"]):
      lines.append(reason)
  return "\n".join(lines).rstrip()


# Words in the events of a pod that waits -> what to do.
_REMEDIES = {
  "quota": "the project has no quota for more nodes of this kind: ask for it "
  "in the console under IAM & Admin, Quotas, or use nodes that exist",
  "affinity/selector": "no node pool has the chips of --topology, or its nodes "
  "are of another kind: gcloud container node-pools list shows the pools, and "
  f"kubectl get nodes -L{_ACCELERATOR},{_TOPOLOGY} their labels",
  "insufficient": "all nodes of this kind are in use; wait for another job to "
  "end, or make another node pool",
}
_OF_WAITING = ("FailedScaleUp", "NotTriggerScaleUp", "FailedScheduling")


def why_pending(pods: Sequence[str], events: Sequence[dict[str, Any]]) -> str:
  """Returns why pods have no node, and what to do; "" if no event says it.

  Args:
    pods: the names of the pods.
    events: the events of all pods, as the cluster reports them.
  """
  for reason in _OF_WAITING:  # the most telling one first
    found = [
      event
      for event in events
      if event.get("reason") == reason
      and event.get("involvedObject", {}).get("name") in pods
    ]
    if not found:
      continue
    message = " ".join(str(found[-1].get("message", "")).split())
    text = message.lower()
    remedy = next((do for word, do in _REMEDIES.items() if word in text), "")
    pod = found[-1]["involvedObject"]["name"]
    return f"{pod} has no node: {message[:300]}" + (remedy and f"; {remedy}")
  return ""


def describe(jobset: dict[str, Any]) -> str:
  """Returns the state of a JobSet, as the cluster reports it, in one line."""
  found = jobset.get("status", {})
  state = found.get("terminalState") or (
    "Suspended" if jobset["spec"].get("suspend") else "Running"
  )
  reasons = [
    f"{one['type']}: {one.get('message') or one.get('reason', '')}"
    for one in found.get("conditions", [])
    if one.get("status") == "True"
  ]
  limit = jobset["spec"].get("failurePolicy", {}).get("maxRestarts", 0)
  counted = found.get("restartsCountTowardsMax", found.get("restarts", 0))
  line = f"{jobset['metadata']['name']}: {state}, {counted} of {limit} restarts"
  return "; ".join([line, *reasons[-1:]])


def logs(job: jobs.Job) -> list[str]:
  """Returns the command that shows the messages of the first process."""
  first = f"{_of(job)},jobset.sigs.k8s.io/job-index=0"
  index = "batch.kubernetes.io/job-completion-index=0"
  return _kubectl(
    job,
    "logs",
    "--follow",
    "--tail=200",
    f"-l{first},{index}",
    f"-c{CONTAINER}",
  )


def stop(job: jobs.Job) -> list[list[str]]:
  """Returns the command that ends a job. The training saves before it ends."""
  return [_kubectl(job, "delete", "jobset", job.name, "--wait=false")]


def _of(job: jobs.Job) -> str:
  return f"jobset.sigs.k8s.io/jobset-name={job.name}"
