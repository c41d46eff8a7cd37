"""Exit statuses of the launcher, and how errors say theirs.

An error class that ends the launcher has the attribute `exit_status`. Where a
user's input or files are at fault, the class is a `UserError`.
"""

FAILED = 1
USAGE = 2
SOME_FAILED = 3
PEER_LOST = 69
SAVED = 75
INTERRUPTED = 130
BROKEN_PIPE = 141  # as of a program that the signal SIGPIPE ends: 128 + 13

# What each means to whoever starts the launcher.
MEANINGS = {
  0: "The job was done.",
  FAILED: "It failed. Of a plan: the training does not fit the memory.",
  USAGE: "The command, its settings or its files cannot be used.",
  SOME_FAILED: "Some lines to predict failed; the others are answered.",
  PEER_LOST: "Another process of this job died or stood still: start the job "
  "again.",
  SAVED: "It was told to stop and has saved, now or earlier: the same command "
  "goes on from there.",
  INTERRUPTED: "It was told to stop and nothing is saved, or it was told "
  "twice.",
  BROKEN_PIPE: "Nobody reads its standard output any more.",
}


class UserError(ValueError):
  """What was asked for cannot be done; the message says what to change."""

  exit_status = USAGE


def status_of(error: BaseException) -> int | None:
  """Returns the exit status for an error; None = it is a bug, to be traced.

  Errors of Python's own classes count as the user's where they are about a
  value or a path, and as a failure where the system fails, as on a full disk.
  """
  if isinstance(error, BrokenPipeError):
    return BROKEN_PIPE
  default = None
  if isinstance(error, ValueError | FileNotFoundError | PermissionError):
    default = USAGE
  elif isinstance(error, OSError):
    default = FAILED
  return getattr(error, "exit_status", default)
