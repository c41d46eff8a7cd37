"""Frequent saves on the disks of the machines that compute.

Every `checkpoint.local_every_steps` each process writes the part of the state
that its devices hold to a folder on a disk of its own machine. A part that no
other process holds is also sent to the next process, its peer, so that a
machine can be lost. All of it happens in a thread, while training goes on.

A session that starts asks all processes what they have. The newest step of
which every part is somewhere is read, if it is newer than the newest checkpoint
of the workdir; a process whose disk is empty fetches its part from another one.

LOCAL_DIR/RUN/STEP-SESSION-PROCESS.shards   see local_shards.py
"""

from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import logging
import os
import re
import secrets
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import hosts
from bert_jax.runtime import local_peers
from bert_jax.runtime import local_shards
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import watchdog

_log = logging.getLogger(__name__)

_NAME = re.compile(r"([0-9]+)-([0-9a-f]+)-[0-9]+\.shards")
_TOKEN = ".host-"  # the names of files begin with this that show a shared disk
_CLOSE_SECS = 60.0  # for a save that is under way when a session ends


class LocalError(errors.UserError):
  """The folder of local steps cannot be used; every process raises it."""

  is_known_to_all = True


def check_settings(settings: Any) -> None:
  """Checks the keys of local steps.

  Args:
    settings: the group `checkpoint` of a config.

  Raises:
    ValueError: they contradict each other.
  """
  folder = getattr(settings, "local_dir", "")  # older runs lack the keys
  every = getattr(settings, "local_every_steps", 0)
  if bool(folder) != bool(every):
    raise ValueError(
      f"checkpoint.local_dir={folder!r} and checkpoint.local_every_steps="
      f"{every} go together: give a folder on a disk of each machine and a "
      "number of steps, or neither"
    )
  if files.is_remote(folder):
    raise ValueError(
      f"checkpoint.local_dir={folder} is a bucket; give a folder on a disk of "
      "each machine, such as /mnt/disk/bert_jax. The workdir may be a bucket"
    )
  if every and 0 < settings.every_steps <= every:
    raise ValueError(
      f"checkpoint.local_every_steps={every} must be less than "
      f"checkpoint.every_steps={settings.every_steps}, which saves to the "
      "workdir"
    )


def choose(reports: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """Chooses the newest step of which every process can get its part.

  Args:
    reports: what each process needs and has: `need`, the digest of its part,
      and `have`, lists of [step, session, digest, name of the file].

  Returns:
    `step` and `session`; `name` and `holder`, the file and the process that has
    it, for each process; and `lonely`, whether the peer of a process lacks a
    part that nobody else needs. None = there is no such step.
  """
  known = {(step, session) for r in reports for step, session, *_ in r["have"]}
  for step, session in sorted(known, reverse=True):
    parts = [
      {d: name for s, i, d, name in r["have"] if (s, i) == (step, session)}
      for r in reports
    ]
    names, holders = [], []
    for k, report in enumerate(reports):
      # Its own file if it has it; otherwise not all ask the same process.
      order = [(k + i) % len(reports) for i in range(len(reports))]
      having = [j for j in order if report["need"] in parts[j]]
      if not having:
        break
      holders.append(having[0])
      names.append(parts[having[0]][report["need"]])
    else:
      lonely = [
        report["need"] not in parts[peer_of(k, len(reports))]
        for k, report in enumerate(reports)
      ]
      return {
        "step": step, "session": session, "name": names, "holder": holders,
        "lonely": lonely,
      }  # fmt: skip
  return None


def peer_of(process: int, count: int) -> int:
  """Returns the process that keeps the copy of another process."""
  return (process + 1) % count


@contextlib.contextmanager
def opened(settings: Any, workdir: str, wanted: Any) -> Iterator["LocalSteps"]:
  """A context with the local steps of a run.

  Args:
    settings: the group `checkpoint` of a config.
    workdir: the folder of the run.
    wanted: the state: a tree of jax.ShapeDtypeStruct with shardings.

  Raises:
    LocalError: the folder cannot be used. Every process raises it.
  """
  steps = LocalSteps(
    settings.local_dir, settings.local_every_steps, workdir, wanted
  )
  try:
    yield steps
  finally:
    steps.close()


class LocalSteps:
  """The steps of a run on the disks of its machines; see `opened`.

  Attributes:
    folder: where this process keeps them.
  """

  def __init__(self, parent: str, every: int, workdir: str, wanted: Any):
    """Checks the folder, and meets the other processes.

    Args:
      parent: the folder for all runs.
      every: after how many steps to save.
      workdir: the folder of the run.
      wanted: the state: a tree of jax.ShapeDtypeStruct with shardings.

    Raises:
      LocalError: the folder cannot be used. Every process raises it.
    """
    name = hashlib.sha256(files.absolute(workdir).encode()).hexdigest()[:16]
    self.folder = os.path.join(files.absolute(parent), name)
    self._workdir, self._wanted, self._every = workdir, wanted, every
    self._index, self._count = jax.process_index(), jax.process_count()
    self._run = ""
    self._need = local_shards.digest(wanted, self._index)
    self._session, self._secret = hosts.from_first(
      [secrets.token_hex(4), secrets.token_hex(16)]
    )
    _check_folder(self.folder, parent, self._session)
    # (step, session) of the newest step that all processes have.
    self._whole: tuple[int, str] | None = None
    self._writing = 0
    # The step and arrays that `restore` read; `begin` writes them again as a
    # step of this session.
    self._found: tuple[int, Any] | None = None
    self._is_read = False  # whether it is known what earlier sessions left
    self._thread: threading.Thread | None = None
    self._problem = ""
    self._server: local_peers.Server | None = None
    address = None
    if self._count > 1:
      self._server = local_peers.Server(
        self.folder, self._secret, local_shards.check, *local_peers.own_host()
      )
      address = self._server.address
    met = hosts.decide([self._need, address], list)
    self._addresses = [tuple(where) for _, where in met if where]
    # A part that several processes hold needs no further copy.
    self._needs_copy = (
      [need for need, _ in met].count(self._need) == 1 < len(met)
    )

  def is_due(self, step: int) -> bool:
    """Returns whether to save after a step."""
    return step % self._every == 0

  # --- reading ----------------------------------------------------------------

  def restore(self, after: int) -> tuple[int, Any] | None:
    """Reads the newest step that all processes together have.

    Args:
      after: only later steps count.

    Returns:
      The step and the state; None if there is none. Files of other steps are
      deleted then.
    """
    self._read_run()
    have = self._scan(hosts.from_first(after))
    found = self._restore(after, have)
    self._is_read = True
    return found

  def _restore(
    self, after: int, have: list[list[Any]]
  ) -> tuple[int, Any] | None:
    while True:
      report = {"need": self._need, "have": have}
      verdict = hosts.decide(report, choose)
      if verdict is None:
        if any(hosts.decide(len(have), list)) and self._index == 0:
          _log.warning(
            "the local steps of %s are not whole, because disks were lost or "
            "the mesh is another one; going on from step %d of the workdir",
            self._workdir, after,
          )  # fmt: skip
        self._tidy(None)
        return None
      pieces, own = self._read(verdict)
      bad = [one for one in hosts.decide(own, list) if one]
      lost = [name for holder, name in bad if holder == self._index]
      have = [one for one in have if one[3] not in lost]
      if not bad:
        break
    step = verdict["step"]
    self._whole = (step, verdict["session"])
    self._tidy(self._whole)
    if self._index == 0:
      _log.info(
        "going on from step %d, which is on the local disks; the workdir has "
        "step %d",
        step, after,
      )  # fmt: skip
    if self._needs_copy and verdict["lonely"][self._index]:
      self._put(verdict["name"][self._index])
    self._found = (step, pieces)
    return step, local_shards.place(self._wanted, pieces)

  def _read_run(self) -> None:
    """Reads which session of which run began last; "" before the first.

    Only its files count: those of an earlier one may have come back with a disk
    after another session has gone on from an older step.
    """
    name = ""
    if self._index == 0 and runs.exists(self._workdir):
      run = runs.read_run(self._workdir)
      name = f"{run.get('started')} {run.get('resumed', '')}".strip()
    self._run = hosts.from_first(name)

  def _scan(self, after: int) -> list[list[Any]]:
    """Lists the files of this run, as `choose` takes them."""
    found: list[list[Any]] = []
    for name in sorted(files.list_names(self.folder)):
      if not _NAME.fullmatch(name):
        continue
      try:
        header = local_shards.read_header(os.path.join(self.folder, name))
      except (OSError, local_shards.DamageError) as error:
        _log.warning("%s; doing without this local copy", error)
        continue
      if header.run == self._run and header.step > after:
        found.append([header.step, header.session, header.digest, name])
    return found

  def _read(self, verdict: dict[str, Any]) -> tuple[Any, list[Any] | None]:
    """Reads the part of this process, from its disk or from another process.

    Returns:
      The pieces, and None; or None, and which file of which process is bad.
    """
    name = verdict["name"][self._index]
    holder = verdict["holder"][self._index]
    path = os.path.join(self.folder, name)
    try:
      if holder != self._index:
        watchdog.note(f"fetching a local step from process {holder}")
        local_peers.fetch(self._addresses[holder], self._secret, path)
      header = local_shards.read_header(path)
      return local_shards.read_pieces(path, header, self._wanted), None
    except (OSError, local_shards.DamageError) as error:
      of = f" (of process {holder})" if holder != self._index else ""
      _log.warning("%s%s; looking for another local copy", error, of)
      return None, [holder, name]

  def _put(self, name: str) -> None:
    """Gives the peer a copy again, after a machine was lost."""
    address = self._addresses[peer_of(self._index, self._count)]
    try:
      path = os.path.join(self.folder, name)
      local_peers.put(address, self._secret, path)
    except OSError as error:
      _log.warning("no copy of %s on another machine: %s", name, error)

  # --- writing ----------------------------------------------------------------

  def begin(self) -> None:
    """Notes which session this is, once run.json is written.

    A step that was read from local disks becomes one of this session.
    """
    self._read_run()
    if self._found:
      self._start(*self._found)
      self._found = None

  def save(self, step: int, state: Any, committed: int) -> None:
    """Saves a step; all processes call it at the same steps.

    When this returns, the state is on the host, and a thread is writing it. A
    save that fails is a warning: the workdir has the checkpoints.

    Args:
      step: the number of updates.
      state: a tree of jax arrays like `wanted`.
      committed: the newest step that is complete in the workdir. Older local
        steps are deleted.
    """
    self.finish(committed)
    self._start(step, local_shards.take(state))

  def _start(self, step: int, pieces: Sequence[np.ndarray]) -> None:
    """Starts the thread that writes a step."""
    self._writing, self._problem = step, ""
    self._thread = threading.Thread(
      target=self._write, args=(step, pieces), daemon=True
    )
    self._thread.start()

  def _write(self, step: int, pieces: Sequence[np.ndarray]) -> None:
    name = f"{step}-{self._session}-{self._index}.shards"
    path = os.path.join(self.folder, name)
    header = local_shards.Header(
      self._run, self._session, step, self._index, self._need, [], []
    )
    try:
      local_shards.write(path, header, pieces)
      if self._needs_copy:
        address = self._addresses[peer_of(self._index, self._count)]
        local_peers.put(address, self._secret, path)
    except (OSError, ValueError) as error:
      self._problem = errors.first_line(error)

  def finish(self, committed: int = 0) -> None:
    """Waits for a save that is under way; all processes call it together.

    Args:
      committed: as for `save`.
    """
    if self._thread is None:
      return
    self._thread.join()
    self._thread = None
    is_good, committed = not self._problem, max(committed, 0)
    if self._count > 1:
      told = multihost_utils.process_allgather(
        np.array([is_good, committed], np.int32)
      )
      is_good, committed = bool(told[:, 0].all()), int(told[:, 1].min())
    if is_good:
      self._whole = (self._writing, self._session)
    elif self._problem:
      _log.warning(
        "step %d is not saved locally: %s", self._writing, self._problem
      )
    if self._whole and self._whole[0] < committed:
      self._whole = None
    self._tidy(self._whole, self._writing)

  def _tidy(self, kept: tuple[int, str] | None, newest: int = 0) -> None:
    """Deletes the files of all steps but one.

    Args:
      kept: the step and the session of the one to keep.
      newest: files of this session after this step are kept, too: another
        process may be ahead.
    """
    for name in files.list_names(self.folder):
      path = os.path.join(self.folder, name)
      if files.is_temporary(name):
        files.remove_abandoned(path)
      if not (parts := _NAME.fullmatch(name)):
        continue
      step, session = int(parts[1]), parts[2]
      is_ahead = session == self._session and step > newest
      if (step, session) != kept and not is_ahead:
        with contextlib.suppress(FileNotFoundError):
          files.delete(path)

  def close(self) -> None:
    """Ends the session; deletes steps that the workdir has surpassed."""
    if self._thread is not None:
      self._thread.join(_CLOSE_SECS)
    if self._server is not None:
      self._server.close()
    if not self._is_read:
      return
    folder = os.path.join(files.absolute(self._workdir), "checkpoints")
    newest = max(self._writing, self._whole[0] if self._whole else 0)
    with contextlib.suppress(OSError, *files.UNREADABLE):
      if max(saved_steps.steps_in(folder), default=0) >= newest:
        files.delete_folder(self.folder)


def _check_folder(folder: str, parent: str, session: str) -> None:
  """Raises LocalError unless each process has a folder of its own.

  Args:
    folder: the folder, which is created.
    parent: what the user gave.
    session: the identity of the session.
  """
  token = f"{_TOKEN}{session}-"
  path = os.path.join(folder, f"{token}{jax.process_index()}")
  problem, seen = "", []
  try:
    files.make_folders(folder)
    files.create(path)
    if not files.is_own(folder):  # whoever owns it may write what is trained on
      problem = f"finds that another user owns {folder}; give another folder"
  except OSError as error:
    problem = f"cannot write to it: {error.strerror or error}"
  problems = hosts.decide(problem, list)
  if not any(problems):
    seen = [x for x in files.list_names(folder) if x.startswith(token)]
    problems = [
      "shares it with another process: give a folder on a disk of its own"
      if len(names) > 1
      else ""
      for names in hosts.decide(seen, list)
    ]
  with contextlib.suppress(OSError):
    files.delete(path)
  for i, problem in enumerate(problems):
    if problem:
      raise LocalError(f"checkpoint.local_dir={parent}: process {i} {problem}")
