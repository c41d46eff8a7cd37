"""The shipped configs as a package: `from bert_jax.configs import base`.

This line works in a clone, whose folder `configs` it reads, and with an
installed package, which carries a copy of that folder.
"""

from typing import TYPE_CHECKING

from bert_jax.runtime import config_files

if TYPE_CHECKING:
  from configs import base as base
  from configs import finetune as finetune
  from configs import predict as predict
  from configs import pretrain as pretrain

__path__ = [str(config_files.ROOT / "configs")]
