"""The attention programs there are, a row each.

To add one, write its module beside this file and give it a row here and a name
in `config.ATTENTIONS`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from bert_jax.models.attention import plain
from bert_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Program:
  """One attention program, and what it needs to know and to be given.

  Attributes:
    check: (config, L) -> None. Raises ValueError if the program does not take
      rows of L tokens for this model.
    row_unit: lengths of rows are best a multiple of this many tokens.
    has_dropout: the program can drop attention probabilities out.
    layout: what `attend` takes. "heads": (query, key, value, mask, rng, rate)
      with arrays [B, N, L, H]. "flat": (qkv, biases, mask, rng, rate, H), where
      qkv is three arrays [B, L, N * H]. "joined": the same with one array
      [B, L, 3 * N * H], which needs a mesh that leaves the heads whole.
    takes_bias: the mask is a bias [B, N, L, L], and not `masks.Visible`.
    attend: returns the context, laid out as the query is.
  """

  check: Callable[[ModelConfig, int], None]
  row_unit: int
  has_dropout: bool
  layout: str
  takes_bias: bool
  attend: Callable[..., Any]


# The modules of the kernels import Pallas, which is slow: only who uses one of
# them imports it.


def _check_fused(config: ModelConfig, length: int) -> None:
  from bert_jax.models.attention import fused

  fused.check_shapes(length, config.hidden_size, config.head_dim)


def _attend_fused(*args: Any) -> Any:
  from bert_jax.models.attention import fused

  return fused.attend(*args)


def _check_splash(config: ModelConfig, length: int) -> None:
  from bert_jax.models.attention import splash

  splash.check_shapes(length)


def _attend_splash(query, key, value, mask, rng, rate):
  from bert_jax.models.attention import splash

  del rng, rate
  return splash.attend(query, key, value, mask)


_FUSED = Program(
  check=_check_fused,
  row_unit=128,
  has_dropout=True,
  layout="flat",
  takes_bias=False,
  attend=_attend_fused,
)
PROGRAMS = {
  "plain": Program(
    check=lambda config, length: None,
    row_unit=8,
    has_dropout=True,
    layout="heads",
    takes_bias=True,
    attend=plain.attend,
  ),
  "fused": _FUSED,
  "fused_qkv": dataclasses.replace(_FUSED, layout="joined"),
  "splash": Program(
    check=_check_splash,
    row_unit=128,
    has_dropout=False,
    layout="heads",
    takes_bias=False,
    attend=_attend_splash,
  ),
}


def program_of(config: ModelConfig) -> Program:
  """The attention program that a model's config names."""
  return PROGRAMS[config.attention]


def check(config: ModelConfig, length: int) -> None:
  """Checks that a model's attention program can do what the config asks.

  Args:
    config: of the model.
    length: L, tokens in a row.

  Raises:
    ValueError: the program does not take rows of this length, or has no dropout
      of attention probabilities where the config asks for it.
  """
  program = program_of(config)
  if config.attention_dropout_rate and not program.has_dropout:
    able = ", ".join(n for n, other in PROGRAMS.items() if other.has_dropout)
    raise ValueError(
      f"model.attention={config.attention} has no dropout of attention "
      "probabilities, but model.attention_dropout_rate="
      f"{config.attention_dropout_rate}; set that to 0.0, which gives up a "
      f"part of the paper's regularisation, or use a model.attention of {able}"
    )
  program.check(config, length)


def check_parts(name: str, num_parts: int) -> None:
  """Checks that an attention program can be cut over devices.

  Args:
    name: of the program.
    num_parts: devices that share the heads, which is mesh.tensor.

  Raises:
    ValueError: the program needs all heads on one device.
  """
  if name in PROGRAMS and PROGRAMS[name].layout == "joined" and num_parts > 1:
    raise ValueError(
      f"model.attention={name} needs whole heads, but mesh.tensor={num_parts} "
      "cuts them; use model.attention=fused"
    )
