"""Models of the Hugging Face hub, by name.

A name such as answerdotai/ModernBERT-base stands where a folder of weights or
of a tokenizer is meant, and NAME@REVISION means one revision of it. The files
are downloaded into the cache of `huggingface_hub`, and a run records the
revision. An existing path is never taken for a name. hub://OWNER/NAME always
means the hub; a run records this form.

Environment: HF_ENDPOINT (another hub), HF_HUB_OFFLINE=1 (use only the cache),
HF_TOKEN (private models and pushing), HF_HOME and HF_HUB_CACHE (the cache).
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fnmatch
import logging
import os
import re
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

_NAME = re.compile(
  r"(?:hub://)?(?P<name>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>(?!.*\.\.)[\w][\w./-]*))?"
)
_SCHEME = "hub://"
_HEX = re.compile(r"[0-9a-f]{40}")
# The settings and tokenizers that this program reads.
_SETTINGS = ("*.json", "*.txt", "*.model", "LICENSE*", "README.md")
# The forms of weights; of several, the first is downloaded.
_WEIGHTS = (
  ("model*.safetensors",),
  ("pytorch_model*.bin",),
  ("flax_model.msgpack",),
  ("bert_model.ckpt.*", "*.ckpt.index", "*.ckpt.data-*"),
)
_EXTRA = (
  "this needs the package huggingface_hub: install it with pip install "
  "'bert_jax[hub]'"
)


class HubError(errors.UserError):
  """A model of the hub cannot be had; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of the hub whose files are on this machine.

  Attributes:
    folder: the folder with its files.
    name: its name and the revision that was read, as NAME@REVISION.
  """

  folder: str
  name: str


def is_name(path: str) -> bool:
  """Returns whether a path means a model of the hub.

  It does if it has the form OWNER/NAME or OWNER/NAME@REVISION, and nothing in
  the current folder is called OWNER.

  Example:
    >>> is_name("answerdotai/ModernBERT-base"), is_name("/tmp/model")
    (True, False)
  """
  if not _NAME.fullmatch(path) or files.exists(path):
    return False
  if path.startswith(_SCHEME):
    return True
  return not files.exists(path.split("/", 1)[0])


def address(path: str) -> str:
  """Returns a name in the form that is never a path, hub://OWNER/NAME."""
  return _SCHEME + path.removeprefix(_SCHEME)


def fetch(path: str, *, needs_weights: bool = True) -> Model:
  """Downloads a model, or finds it in the cache.

  Args:
    path: a name, for which `is_name` is True.
    needs_weights: whether weights are downloaded, beside settings and the
      tokenizer.

  Raises:
    HubError: the model, its revision or its weights do not exist, or the hub
      cannot be reached and the cache does not have it.
  """
  match = _NAME.fullmatch(path)
  if match is None:
    raise HubError(f"{path!r:.100} is not OWNER/NAME or OWNER/NAME@REVISION")
  name, revision = match["name"], match["revision"]
  hub = _library(path)
  is_local = _is_offline()
  with _explained(hub, path, name, revision):
    folder = _download(hub, name, revision, _SETTINGS, is_local)
    names = None if is_local else _files_of(hub, name, os.path.basename(folder))
    if needs_weights:
      _fetch_weights(hub, path, folder, names)
  found = os.path.basename(folder)
  if not _HEX.fullmatch(found):
    raise HubError(f"{folder} is not a folder of the hub's cache")
  return Model(folder, f"{name}@{found}")


def _files_of(hub: Any, name: str, commit: str) -> list[str] | None:
  """Returns the files of a revision; None if the hub cannot be reached."""
  try:
    info = _api(hub).model_info(name, revision=commit)
  except Exception as error:  # the library for HTTP has classes of its own
    if not _is_of_connection(hub, error):
      raise
    _log.warning(
      "%s cannot be reached (%s); %s is taken from the cache",
      endpoint(), type(error).__name__, name,
    )  # fmt: skip
    return None
  return [sibling.rfilename for sibling in info.siblings or ()]


def endpoint() -> str:
  """Returns the address of the hub."""
  return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _fetch_weights(
  hub: Any, path: str, folder: str, names: Sequence[str] | None
) -> None:
  """Downloads the weights of a revision, or finds them in the cache.

  Args:
    hub: the module huggingface_hub.
    path: the name that the user gave.
    folder: the folder of the revision in the cache.
    names: the files of the model; None means that only the cache counts.
  """
  name = path.removeprefix(_SCHEME).partition("@")[0]
  commit = os.path.basename(folder)
  for patterns in _WEIGHTS:
    there = files.list_names(folder) if names is None else list(names)
    if any(fnmatch.fnmatch(f, pattern) for f in there for pattern in patterns):
      _download(hub, name, commit, (*_SETTINGS, *patterns), names is None)
      return
  if names is None:
    raise HubError(
      f"the cache has {path}, but not its weights; run once without "
      "HF_HUB_OFFLINE and with the hub in reach"
    )
  weights = ", ".join(pattern for group in _WEIGHTS for pattern in group)
  raise HubError(
    f"{path} on {endpoint()} has no weights that this program reads "
    f"({weights}); it has {', '.join(sorted(names)[:8]) or 'nothing'}"
  )


def _download(
  hub: Any,
  name: str,
  revision: str | None,
  patterns: Sequence[str],
  is_local: bool,
) -> str:
  """Returns the folder of a revision with the files of some patterns."""
  return hub.snapshot_download(
    name,
    revision=revision,
    allow_patterns=list(patterns),
    cache_dir=_cache(),
    endpoint=endpoint(),
    local_files_only=is_local,
  )


def _cache() -> str | None:
  """Returns the folder of the cache; None for that of the library."""
  if folder := os.environ.get("HF_HUB_CACHE"):
    return folder
  if folder := os.environ.get("HF_HOME"):
    return os.path.join(folder, "hub")
  return None


def _is_offline() -> bool:
  names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
  said = {os.environ.get(name, "").upper() for name in names}
  return not said.isdisjoint(("1", "ON", "YES", "TRUE"))


def _library(path: str) -> Any:
  """Imports huggingface_hub.

  Raises:
    HubError: it is not installed.
  """
  try:
    import huggingface_hub
    import huggingface_hub.errors
  except ImportError:
    raise HubError(
      f"{path} is no file or folder here. To read the model of that name from "
      f"the hub, {_EXTRA}; otherwise give a folder"
    ) from None
  return huggingface_hub


def _api(hub: Any) -> Any:
  return hub.HfApi(endpoint=endpoint())


def _is_of_connection(hub: Any, error: Exception) -> bool:
  """Returns whether an error says that the hub cannot be reached."""
  if isinstance(error, hub.errors.OfflineModeIsEnabled | TimeoutError):
    return True
  names = {cls.__name__ for cls in type(error).__mro__}
  if names & {"ConnectError", "TimeoutException", "TransportError"}:
    return True
  status = getattr(getattr(error, "response", None), "status_code", 0)
  return isinstance(error, ConnectionError) or status >= 500


@contextlib.contextmanager
def _explained(
  hub: Any, path: str, name: str, revision: str | None
) -> Iterator[None]:
  """Turns errors of the library into a HubError that says what to change."""
  e = hub.errors
  where = endpoint()
  try:
    yield
  except HubError:
    raise
  except e.GatedRepoError as error:
    raise HubError(
      f"{name} on {where} is gated; accept its conditions there, and set "
      "HF_TOKEN to a token of yours"
    ) from error
  except e.RepositoryNotFoundError as error:
    raise HubError(
      f"{path} is no file or folder here, and {where} has no model {name}, or "
      "it is private; correct the name, or set HF_TOKEN"
    ) from error
  except e.RevisionNotFoundError as error:
    raise HubError(
      f"{name} on {where} has no revision {revision}; give a branch, a tag or "
      "a whole commit hash"
    ) from error
  except e.LocalEntryNotFoundError as error:
    why = (
      "HF_HUB_OFFLINE is set" if _is_offline() else f"{where} cannot be reached"
    )
    raise HubError(
      f"{path} is no file or folder here, and the cache of the hub does not "
      f"have all of it; {why}. Run once with the hub in reach, or give a "
      "folder"
    ) from error
  except Exception as error:  # the library for HTTP has classes of its own
    raise HubError(f"{path} from {where}: {error!s:.300}") from error


# --- pushing -----------------------------------------------------------------


def check_push(name: str) -> None:
  """Raises HubError if a folder could not be pushed to a name.

  Args:
    name: OWNER/NAME.
  """
  match = _NAME.fullmatch(name)
  if match is None or match["revision"] or name.startswith(_SCHEME):
    raise HubError(
      f"--push={name:.100} is not the name of a model; wanted OWNER/NAME"
    )
  try:
    import huggingface_hub as hub
  except ImportError:
    raise HubError(f"--push={name}: {_EXTRA}") from None
  if _is_offline():
    raise HubError(f"--push={name}: HF_HUB_OFFLINE is set; unset it")
  if not hub.get_token():
    raise HubError(
      f"--push={name}: there is no token; set HF_TOKEN, or run hf auth login"
    )


def push(folder: str, name: str, message: str) -> str:
  """Uploads a folder as a model of the hub, which is created if need be.

  Args:
    folder: the folder.
    name: OWNER/NAME.
    message: the message of the commit.

  Returns:
    The name and the revision that was made, as NAME@REVISION.

  Raises:
    HubError: the hub refuses it, or cannot be reached.
  """
  check_push(name)
  hub = _library(name)
  api = _api(hub)
  with _explained(hub, name, name, None):
    api.create_repo(name, exist_ok=True)
    commit = api.upload_folder(
      repo_id=name, folder_path=folder, commit_message=message
    )
  return f"{name}@{commit.oid}"
