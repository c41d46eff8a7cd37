"""Formats a plan as text."""

from collections.abc import Mapping
from typing import Any

from bert_jax.planning import hlo
from bert_jax.runtime.chips import GIB


def report(plan: Mapping[str, Any]) -> str:
  """Returns the text about a plan.

  Args:
    plan: the plan, from `plan.make_plan`.
  """
  slices = f"{plan['num_slices']} x " if plan["num_slices"] > 1 else ""
  mesh = ", ".join(f"{k}={v}" for k, v in plan["mesh"].items())
  together = plan.get("num_members", 1)
  lines = [
    f"{slices}{plan['topology']}: {plan['num_devices']} x "
    f"{plan['device_kind']}, mesh {mesh}; {plan['batch_size']} rows of "
    f"{plan['seq_len']} tokens per step"
    + (f" for each of {together} models" if together > 1 else ""),
    f"compiled in {plan['compile_secs']:.0f} s and not run: "
    "all times are predictions",
    "",
  ]
  available = plan["hbm_available_bytes"]
  used = plan["hbm_bytes_per_device"]
  fits = "fits" if plan["fits"] else "DOES NOT FIT"
  lines.append(f"memory per device: {_gib(used)} of {_gib(available)}: {fits}")
  for kind, size in plan["hbm_bytes_by_kind"].items():
    lines.append(f"  {kind:<14}{_gib(size):>12}")
  if plan["fits"]:
    lines += _report_time(plan)
  else:
    lines += ["", "what would make it fit:"]
    lines += [f"  {text}" for text in plan["to_make_it_fit"]]
  if "largest_batch_size" in plan:
    size, over = (
      plan["largest_batch_size"], plan["smallest_batch_too_large"]
    )  # fmt: skip
    text = "none was found" if size is None else f"{size} rows over all devices"
    end = "larger ones were not tried" if over is None else f"{over} do not fit"
    lines += ["", f"largest batch that fits: {text}; {end}"]
  return "\n".join(lines)


def _gib(size: float) -> str:
  return f"{size / GIB:.3f} GiB"


def _hours(hours: float) -> str:
  """Returns hours with two decimals, and days where there are many."""
  return f"{hours:,.2f} hours" + (
    f" ({hours / 24:.1f} days)" if hours > 48 else ""
  )


def _report_time(plan: Mapping[str, Any]) -> list[str]:
  """Returns the lines about a step that fits the memory."""
  lines = _speed_lines(plan) + _kernel_lines(plan) + _exchange_lines(plan)
  for title, key in (
    ("warnings", "warnings"),
    ("assumptions", "assumptions"),
    ("left out", "left_out"),
  ):
    if plan[key]:
      lines += ["", f"{title}:"] + [f"  {text}" for text in plan[key]]
  return lines


def _speed_lines(plan: Mapping[str, Any]) -> list[str]:
  step = plan["predicted_step_secs"]
  lines = ["", f"a step, predicted: {step * 1e3:.2f} ms"]
  for kind, value in plan["secs_by_kind"].items():
    hidden = kind == "communication_hidden"
    share = "(not added)" if hidden else f"{value / step:>6.1%}"
    lines.append(f"  {kind:<24}{value * 1e3:>10.2f} ms {share}")
  useful = plan["predicted_useful_tokens_per_sec"]
  useful_text = (
    "unknown without data; give --config.data.dir=DATA"
    if useful is None
    else f"{useful:,.0f} ({plan['useful_token_share']:.1%} of positions)"
  )
  if "predicted_hours" in plan:  # older plans lack it
    lines += [
      f"  all {plan['total_steps']:,} steps         "
      f"{_hours(plan['predicted_hours'])}, "
      f"{plan['predicted_chip_hours']:,.2f} chip-hours on {plan['num_chips']} "
      "chips; evaluating, saving and compiling are not in it",
    ]
  return [
    *lines,
    f"  tokens/s, predicted       {plan['predicted_tokens_per_sec']:,.0f}",
    f"  useful tokens/s           {useful_text}",
    f"  MFU, predicted            {plan['predicted_mfu']:.1%}; without "
    f"communication {plan['predicted_mfu_without_communication']:.1%}",
    "    with the last layer and attention counted at all positions "
    f"{plan['predicted_mfu_all_positions']:.1%}",
    *_assumed_lines(plan),
    f"  model FLOPs               {plan['model_flops_per_step']:.4g}",
    f"  hardware FLOPs            {plan['hardware_flops_per_step']:.4g} "
    f"({plan['predicted_hardware_utilisation']:.1%} of peak)",
    "",
    f"cycles by part, estimated by the compiler ({plan['cycles_per_step']:,}):",
    *(f"  {line}" for line in hlo.part_lines(plan["cycles_by_part"])),
  ]


def _assumed_lines(plan: Mapping[str, Any]) -> list[str]:
  """Returns the lines about the other ruler, which older plans lack."""
  if "assumed_mfu" not in plan:
    return []
  error = plan["error"]
  return [
    "    with kernels at assumed shares of peak and unlimited memory "
    f"{plan['assumed_mfu']:.1%}",
    "    the step would be longer by "
    f"{error['if_memory_gives_a_fifth_less']:.1%} if memory gave a fifth less, "
    f"by {error['if_grid_steps_cost_what_is_documented']:.1%} if each step of "
    "a kernel's grid cost its documented overhead on top",
  ]


def _kernel_lines(plan: Mapping[str, Any]) -> list[str]:
  heading = ["", "Pallas kernels, in addition to these cycles:"]
  return (heading if plan["pallas_kernels"] else []) + [
    f"  {kernel['runs']} x {kernel['name']} ({kernel['phase']}): "
    f"{kernel['secs_per_run'] * 1e6:.1f} us each, "
    f"{kernel['runs'] * kernel['secs_per_run'] * 1e3:.2f} ms per step"
    + _ruler(kernel)
    for kernel in plan["pallas_kernels"]
  ]


def _ruler(kernel: Mapping[str, Any]) -> str:
  """Says by which ruler the time of a kernel was found."""
  if "assumed_secs_per_run" not in kernel:  # an older plan
    return ""
  if kernel["scheduled_cycles"] is None:
    return "; assumed, no schedule was found"
  return (
    f"; {kernel['scheduled_cycles']:,.0f} cycles scheduled, assumed were "
    f"{kernel['assumed_secs_per_run'] * 1e6:.1f} us"
  )


def _exchange_lines(plan: Mapping[str, Any]) -> list[str]:
  sent = plan["collective_bytes_per_step"]
  lines = ["", f"sent by a device to others: {sent / 1e6:,.1f} MB per step"]
  for row in plan["collectives"]:
    if row["bytes_sent"] < 0.001 * sent:
      continue
    lines.append(
      f"  {row['count']:>4} x {row['kind']:<19} over {row['mesh_axes']} "
      f"({row['links']}): {row['bytes_sent'] / 1e6:,.1f} MB, "
      f"{row['secs'] * 1e3:.2f} ms, {row['async_count']} may overlap"
    )
  return lines
