"""Flags of XLA with which programs compile fast; jax is not imported yet."""

import importlib.metadata
import re

JAXLIB = tuple(
  map(int, re.findall(r"\d+", importlib.metadata.version("jaxlib")))
)
# Without LLVM's optimizations tests take a third of the time, and a training
# step compiles in a third of the time if fusions are emitted without MLIR.
QUICK = ("--xla_backend_optimization_level=0",)
# Options of `jax.jit` by which fusions are emitted as outside of tests.
USUAL: dict[str, bool] = {}
if JAXLIB < (0, 11):  # 0.12 has MLIR alone, and ends at an unknown flag
  QUICK += ("--xla_cpu_use_fusion_emitters=false",)
  USUAL = {"xla_cpu_use_fusion_emitters": True}
