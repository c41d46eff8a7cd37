"""The table of attention programs.

To add a program, write its module beside this file, add its row here and add
its name to `config.ATTENTIONS`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from bert_jax.models.attention import plain
from bert_jax.models.attention import positions
from bert_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Program:
  """One attention program: its limits and its arguments.

  Attributes:
    check: (config, L) -> None. Raises ValueError if the program does not take
      rows of L tokens for this model.
    row_unit: the program is fastest for rows of a multiple of this many tokens.
    has_dropout: whether the program has dropout of attention probabilities.
    layout: the arguments of `attend`. "heads": (query, key, value, mask, rng,
      rate) with arrays [B, N, L, H]. "flat": (qkv, biases, mask, rng, rate, H),
      where qkv is three arrays [B, L, N * H]. "joined": the same with one array
      [B, L, 3 * N * H], which needs a mesh that does not split the heads.
    takes_bias: whether the mask is a bias [B, N, L, L] or `masks.Visible`.
    attend: the function, which returns the context in the layout of the query.
    attend_window: the same for layers with local attention: (query, key, value,
      `masks.Window`, rng, rate, radius) with arrays [B, N, L, H]; None: the
      program has no local attention.
    attend_causal: the same for a `masks.Before`, without a radius; None: the
      program has no causal attention, unless it takes a bias.
  """

  check: Callable[[ModelConfig, int], None]
  row_unit: int
  has_dropout: bool
  layout: str
  takes_bias: bool
  attend: Callable[..., Any]
  attend_window: Callable[..., Any] | None = None
  attend_causal: Callable[..., Any] | None = None

  @property
  def has_causal(self) -> bool:
    """Whether the program can hide what is behind a token."""
    return self.takes_bias or self.attend_causal is not None


# The modules of the kernels import Pallas, which is slow, so they are imported
# only when they are used.


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


def _attend_splash_window(query, key, value, window, rng, rate, radius):
  from bert_jax.models.attention import splash

  del rng, rate
  return splash.attend(query, key, value, window.visible, radius)


def _check_cudnn(config: ModelConfig, length: int) -> None:
  from bert_jax.models.attention import cudnn

  cudnn.check_config(config, length)


def _attend_cudnn(query, key, value, mask, rng, rate):
  from bert_jax.models.attention import cudnn

  del rng, rate
  return cudnn.attend(query, key, value, mask)


def _attend_cudnn_window(query, key, value, window, rng, rate, radius):
  from bert_jax.models.attention import cudnn

  del rng, rate
  return cudnn.attend_window(query, key, value, window, radius)


def _attend_splash_before(query, key, value, before, rng, rate):
  from bert_jax.models.attention import splash

  del rng, rate
  return splash.attend(query, key, value, before.visible, is_causal=True)


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
    attend_window=plain.attend_window,
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
    attend_window=_attend_splash_window,
    attend_causal=_attend_splash_before,
  ),
  "cudnn": Program(
    check=_check_cudnn,
    row_unit=8,
    has_dropout=False,
    layout="heads",
    takes_bias=False,
    attend=_attend_cudnn,
    attend_window=_attend_cudnn_window,
  ),
}


def program_of(config: ModelConfig) -> Program:
  """Returns the attention program that the config of a model names."""
  return PROGRAMS[config.attention]


def check_dropout(config: ModelConfig) -> None:
  """Raises ValueError if a program lacks the dropout that the config sets."""
  if config.attention_dropout_rate and not program_of(config).has_dropout:
    able = ", ".join(n for n, other in PROGRAMS.items() if other.has_dropout)
    raise ValueError(
      f"model.attention={config.attention} has no dropout of attention "
      "probabilities, but model.attention_dropout_rate="
      f"{config.attention_dropout_rate}; set that to 0.0, which gives up a "
      f"part of the paper's regularisation, or use a model.attention of {able}"
    )


def check_switches(config: ModelConfig) -> None:
  """Raises ValueError if a program lacks what the encoder's switches need."""
  program = program_of(config)
  if config.attention_pattern == "local" and program.attend_window is None:
    able = ", ".join(n for n, other in PROGRAMS.items() if other.attend_window)
    raise ValueError(
      f"model.attention={config.attention} has no local attention, but "
      f"model.attention_pattern=local; use a model.attention of {able}"
    )
  if config.attention_pattern == "causal" and not program.has_causal:
    able = ", ".join(n for n, other in PROGRAMS.items() if other.has_causal)
    raise ValueError(
      f"model.attention={config.attention} has no causal attention, but "
      f"model.attention_pattern=causal; use a model.attention of {able}"
    )
  if (
    positions.row_of(config.attention_positions).needs_scores
    and not program.takes_bias
  ):
    able = ", ".join(n for n, other in PROGRAMS.items() if other.takes_bias)
    raise ValueError(
      f"model.attention={config.attention} adds nothing to the scores, but "
      f"model.attention_positions={config.attention_positions} does; use a "
      f"model.attention of {able}"
    )


def check(config: ModelConfig, length: int) -> None:
  """Checks that an attention program can do what the config of a model asks.

  Args:
    config: the config of the model.
    length: L, the number of tokens in a row.

  Raises:
    ValueError: the program does not take rows of this length, or lacks the
      dropout that is set.
  """
  check_dropout(config)
  check_switches(config)
  program_of(config).check(config, length)


def check_parts(name: str, num_parts: int) -> None:
  """Checks that the heads of an attention program may be split over devices.

  Args:
    name: the name of the program.
    num_parts: the number of devices that share the heads, mesh.tensor.

  Raises:
    ValueError: the program needs all heads on one device.
  """
  if name in PROGRAMS and PROGRAMS[name].layout == "joined" and num_parts > 1:
    raise ValueError(
      f"model.attention={name} needs all heads on one device, but mesh.tensor="
      f"{num_parts} splits them; use model.attention=fused"
    )
