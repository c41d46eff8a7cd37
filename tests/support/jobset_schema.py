"""Checks JobSets without a cluster.

The Jobs in a JobSet are checked by the schema of Kubernetes itself (the package
kubernetes-validate). JobSet's own fields are few; they are written down here.

Source: jobset.sigs.k8s.io, reference of jobset.x-k8s.io/v1alpha2 (JobSet 0.8);
kubernetes.io, Pod failure policy (what the schema leaves to the server).
"""

from typing import Any

# A field: its type, or a dict for an object, or a list of one for a list.
JOBSET: dict[str, Any] = {
  "apiVersion": str,
  "kind": str,
  "metadata": dict,
  "spec": {
    "replicatedJobs": [
      {
        "name": str,
        "groupName": str,
        "replicas": int,
        "template": {"metadata": dict, "spec": dict},
        "dependsOn": [{"name": str, "status": str}],
      }
    ],
    "network": {
      "enableDNSHostnames": bool,
      "subdomain": str,
      "publishNotReadyAddresses": bool,
    },
    "successPolicy": {"operator": str, "targetReplicatedJobs": [str]},
    "failurePolicy": {
      "maxRestarts": int,
      "restartStrategy": str,
      "rules": [
        {
          "name": str,
          "action": str,
          "onJobFailureReasons": [str],
          "targetReplicatedJobs": [str],
        }
      ],
    },
    "startupPolicy": {"startupPolicyOrder": str},
    "suspend": bool,
    "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
    "managedBy": str,
    "ttlSecondsAfterFinished": int,
  },
}
_ACTIONS = {
  "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts",
}  # fmt: skip
_REASONS = {
  "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
  "MaxFailedIndexesExceeded", "PodFailurePolicy",
}  # fmt: skip


def problems(jobset: dict[str, Any]) -> list[str]:
  """Returns what is wrong with the fields of a JobSet itself."""
  found = _mismatches(jobset, JOBSET, "")
  if found:
    return found
  if (jobset["apiVersion"], jobset["kind"]) != (
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
  ):
    found.append("another apiVersion or kind")
  spec = jobset["spec"]
  for rule in spec.get("failurePolicy", {}).get("rules", []):
    if rule["action"] not in _ACTIONS:
      found.append(f"no action {rule['action']}")
    unknown = set(rule.get("onJobFailureReasons", ())) - _REASONS
    found += [f"no reason {reason}" for reason in unknown]
  for one in spec["replicatedJobs"]:
    job = one["template"]["spec"]
    # The longest name of a pod, with the five characters that are added.
    last = f"-{one['name']}-{one['replicas'] - 1}-{job['completions'] - 1}"
    if len(f"{jobset['metadata']['name']}{last}-12345") > 63:
      found.append("the name of a pod is too long")
    for rule in job.get("podFailurePolicy", {}).get("rules", []):
      values = rule.get("onExitCodes", {}).get("values", [1])
      if values != sorted(set(values)):
        found.append(f"values must be ascending and differ: {values}")
      if 0 in values and rule["onExitCodes"]["operator"] == "In":
        found.append("0 is no failure")
    if job.get("podFailurePolicy"):
      if job["template"]["spec"]["restartPolicy"] != "Never":
        found.append("podFailurePolicy needs restartPolicy: Never")
  return found


def _mismatches(value: Any, schema: Any, where: str) -> list[str]:
  """Returns where a value has another type or a field that is not known."""
  if isinstance(schema, dict):
    if not isinstance(value, dict):
      return [f"{where} is no object"]
    return [
      problem
      for name, inner in value.items()
      for problem in (
        _mismatches(inner, schema[name], f"{where}.{name}")
        if name in schema
        else [f"{where} has no field {name}"]
      )
    ]
  if isinstance(schema, list):
    if not isinstance(value, list):
      return [f"{where} is no list"]
    return [
      problem
      for i, inner in enumerate(value)
      for problem in _mismatches(inner, schema[0], f"{where}[{i}]")
    ]
  is_right = isinstance(value, schema) and not (
    schema is int and isinstance(value, bool)
  )
  return [] if is_right else [f"{where} is no {schema.__name__}"]


def jobs_of(jobset: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the Jobs that a JobSet makes, as manifests of their own."""
  name = jobset["metadata"]["name"]
  return [
    {
      "apiVersion": "batch/v1",
      "kind": "Job",
      "metadata": {"name": f"{name}-{one['name']}-{i}"},
      "spec": one["template"]["spec"],
    }
    for one in jobset["spec"]["replicatedJobs"]
    for i in range(one["replicas"])
  ]


def outcome(jobset: dict[str, Any], status: int, is_disrupted: bool) -> str:
  """Returns what follows when a pod fails, by the documented rules.

  Args:
    jobset: the JobSet; its Jobs have backoffLimit 0.
    status: the exit status of the pod's container, from 1.
    is_disrupted: whether the pod has the condition DisruptionTarget.

  Returns:
    The action of the JobSet, such as "FailJobSet".
  """
  (job, *_) = jobs_of(jobset)
  assert job["spec"]["backoffLimit"] == 0
  reason = "BackoffLimitExceeded"
  for rule in job["spec"]["podFailurePolicy"]["rules"]:
    if codes := rule.get("onExitCodes"):
      is_listed = status in codes["values"]
      matches = is_listed == (codes["operator"] == "In")
    else:
      (condition,) = rule["onPodConditions"]
      assert condition == {"type": "DisruptionTarget", "status": "True"}
      matches = is_disrupted
    if matches:  # the first that matches
      if rule["action"] == "FailJob":
        reason = "PodFailurePolicy"
      else:
        assert rule["action"] == "Count"
      break
  for rule in jobset["spec"]["failurePolicy"]["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"]
  return "RestartJobSet"
