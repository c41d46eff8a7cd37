"""Exit statuses of the launcher, and of the errors that end it.

An error class that ends the launcher has the attribute `exit_status`. Where a
user's input or files are at fault, the class is a `UserError`.
"""

FAILED = 1
USAGE = 2
SOME_FAILED = 3
PEER_LOST = 69
SAVED = 75
INTERRUPTED = 130
BROKEN_PIPE = 141  # that of a program that SIGPIPE ends: 128 + 13

# The meanings of the exit statuses, for the help of the launcher.
MEANINGS = {
  0: "The job was done.",
  FAILED: "The job failed. For a plan: the training does not fit the memory.",
  USAGE: "The command, its settings or its files cannot be used.",
  SOME_FAILED: "Some lines to predict failed; the others are answered.",
  PEER_LOST: "Another process of this job died or stopped responding: start "
  "the job again.",
  SAVED: "The job was told to stop and has saved, now or earlier: the same "
  "command continues from there.",
  INTERRUPTED: "The job was told to stop and nothing is saved, or it was told "
  "twice.",
  BROKEN_PIPE: "The reader of the standard output has closed it.",
}


class UserError(ValueError):
  """A request cannot be fulfilled; the message says what to change."""

  exit_status = USAGE


def status_of(error: BaseException) -> int | None:
  """Returns the exit status for an error; None = a bug (show a traceback).

  Errors of Python's own classes about a value or a path are mistakes of the
  user. Errors of the system, such as a full disk, are failures.
  """
  if isinstance(error, BrokenPipeError):
    return BROKEN_PIPE
  default = None
  if isinstance(error, ValueError | FileNotFoundError | PermissionError):
    default = USAGE
  elif isinstance(error, OSError):
    default = FAILED
  return getattr(error, "exit_status", default)


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, at most 500 characters."""
  return (str(error).strip().splitlines() or [repr(error)])[0][:500]
