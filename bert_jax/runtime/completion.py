"""Completion of the launcher's options in a shell.

  source <(bert-jax --completion=bash --config=configs/pretrain.py)

The script completes modes, options, the names of shipped configs, config files,
the values of options that have a fixed set of values, and after --config. the
keys of the config that is given when the script is made. Everywhere else it
completes files and folders.
"""

from collections.abc import Mapping
from typing import Any

from bert_jax.runtime import config_files
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

SHELLS = ("bash", "zsh")

_SCRIPT = """\
_bert_jax() {{
  local IFS=$'\\n' word=${{COMP_LINE:0:COMP_POINT}} value
  word=${{word##* }}
  value=${{word#*=}}
  COMPREPLY=()
  case $word in
{cases}
    --config=*) COMPREPLY=($(compgen -W {configs} -- "$value"
      compgen -d -S / -- "$value"
      compgen -f -X '!*.py' -- "$value")) ;;
    --*=*) COMPREPLY=($(compgen -f -- "$value")) ;;
    --config.*) COMPREPLY=($(compgen -W {keys} -- "$word")) ;;
    *) COMPREPLY=($(compgen -W {options} -- "$word")) ;;
  esac
  # bash takes the sign = for the end of a word, and completes what follows.
  [[ $COMP_WORDBREAKS == *=* || $word != *=* ]] ||
    COMPREPLY=("${{COMPREPLY[@]/#/${{word%%=*}}=}}")
  compopt -o nospace 2>/dev/null
}}
complete -F _bert_jax bert-jax
"""
# zsh reads completions of bash after this.
_ZSH = "autoload -U +X compinit && compinit\n"
_ZSH += "autoload -U +X bashcompinit && bashcompinit\n"


def script(
  shell: str, launcher: Mapping[str, Any], config: Config | None
) -> str:
  """Returns the script for a shell.

  Args:
    shell: one of SHELLS.
    launcher: the flags of absl, by name.
    config: the config whose keys are completed; None = no keys.
  """

  def words(found):
    return "$'" + "\\n".join(found) + "'"

  choices = {
    name: flag.parser.enum_values
    for name, flag in launcher.items()
    if hasattr(flag.parser, "enum_values")
  }
  keys = sorted(settings.flatten(config)) if config else []
  cases = "\n".join(
    f'    --{name}=*) COMPREPLY=($(compgen -W {words(values)} -- "$value")) ;;'
    for name, values in choices.items()
  )
  text = _SCRIPT.format(
    cases=cases,
    configs=words(config_files.shipped()),
    keys=words([f"--config.{key}=" for key in keys]),
    options=words(
      [
        *choices.get("mode", ()),
        *(f"--{name}=" for name in sorted(launcher)),
        "--config.",
      ]
    ),
  )
  return (_ZSH if shell == "zsh" else "") + text
