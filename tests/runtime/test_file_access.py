"""Only bert_jax/runtime/files.py and its parts open paths that a user gives."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "bert_jax"
# The modules by which all others open files.
OWN = {
  "runtime/files.py", "runtime/buckets.py", "runtime/bucket_cache.py",
  "runtime/bucket_locks.py", "runtime/bucket_appends.py",
}  # fmt: skip
# Module -> the calls that it may make by itself, and why.
ALLOWED = {
  "demo.py": (
    {
      "pathlib.Path",
      "open",
      "os.makedirs",
      "shutil.rmtree",
      "os.path.isdir",
      "os.listdir",
      "os.path.exists",
    },
    "reads Python's own sources, and writes to a folder of this machine",
  ),
  "runtime/locks.py": (
    {
      "open",
      "os.open",
      "os.makedirs",
      "tempfile.TemporaryFile",
      "fcntl.flock",
      "os.readlink",
    },
    "locks of the operating system, and /proc; buckets have bucket_locks",
  ),
  "runtime/machine.py": ({"open", "glob.glob"}, "reads /proc, /dev and /sys"),
  "runtime/streams.py": ({"os.open"}, "opens /dev/null"),
  "runtime/config_files.py": (
    {"pathlib.Path", "open", "shutil.copyfileobj"},
    "a config is Python code, which is run from a file of this machine",
  ),
  "runtime/settings.py": (
    {"pathlib.Path", "os.path.abspath"},
    "reads its own source; the absolute form of what is no bucket",
  ),
  "runtime/compile_cache.py": (
    {"pathlib.Path", "open", "filelock.FileLock"},
    "a folder of this machine; jax itself writes to those of buckets",
  ),
  "runtime/traces.py": (
    {"os.walk", "os.utime"},
    "stamps of the package's own files; a folder of this machine",
  ),
  "runtime/hosts.py": ({"os.rmdir"}, "undoes os.makedirs; buckets need none"),
  "runtime/runs.py": (
    {"os.path.abspath", "os.walk"},
    "hashes the package's own files",
  ),
  "runtime/profiling.py": (
    {"tempfile.mkdtemp", "shutil.rmtree"},
    "a temporary folder, which is uploaded",
  ),
  "runtime/saved_steps.py": ({"os.scandir"}, "of the file system only"),
  "runtime/checkpoint.py": (
    {"glob.glob", "epath.Path"},
    "mends a function of Orbax for the file system",
  ),
  "runtime/trackers.py": ({"tempfile.mkdtemp"}, "a temporary folder"),
  "planning/doctor.py": (
    {"tempfile.NamedTemporaryFile", "shutil.disk_usage", "open", "os.fsync"},
    "tries the file system, and reads /proc/meminfo",
  ),
  "planning/hlo.py": ({"open"}, "a tool for developers, on a local file"),
  "planning/schedules.py": (
    {
      "open",
      "glob.glob",
      "glob.escape",
      "os.path.isfile",
      "os.remove",
    },
    "files that the compiler of TPUs writes to a temporary folder",
  ),
  "modes.py": (
    {"tempfile.TemporaryDirectory"},
    "the folder to which the compiler of TPUs writes schedules",
  ),
  "prediction/records.py": ({"os.path.samefile"}, "of two local files"),
  "data/stages/stage.py": (
    {"shutil.rmtree", "os.rename", "os.rmdir"},
    "ends a stage in the file system; of a bucket before that",
  ),
  "data/prepare.py": (
    {"os.walk", "os.remove"},
    "temporary files of the file system; buckets have none",
  ),
  "data/store/records.py": ({"np.save", "np.load"}, "of a local copy"),
  "data/tokenizers/interface.py": ({"pathlib.Path"}, "in files.local_output"),
  "data/tokenizers/load.py": ({"pathlib.Path"}, "of a local copy"),
  "data/tokenizers/layouts.py": ({"pathlib.Path"}, "of a local copy"),
  "weights/hugging_face.py": ({"safe_open"}, "of a local copy"),
  "weights/tf_checkpoint.py": ({"np.fromfile"}, "of a local copy"),
  "prediction/onnx_graph.py": (
    {"tempfile.TemporaryDirectory"},
    "torch and onnxruntime write there",
  ),
  "launching/plans.py": (
    {"tempfile.TemporaryDirectory", "os.listdir"},
    "a temporary folder",
  ),
  "launching/slurm.py": ({"tempfile.TemporaryDirectory"}, "submitit's logs"),
  "launching/launch.py": ({"shutil.which"}, "finds a program"),
  "training/from_text.py": (
    {"tempfile.TemporaryDirectory"},
    "a vocabulary for `prepare`, on this machine",
  ),
  "sweeps/running.py": ({"tempfile.TemporaryFile"}, "uploaded at the end"),
}
# Functions that touch files, by module; () = all of them.
TOUCHING = {
  "os": (
    "open", "makedirs", "mkdir", "listdir", "scandir", "walk", "rename",
    "replace", "remove", "unlink", "rmdir", "stat", "lstat", "link", "symlink",
    "readlink", "fsync", "truncate", "chmod", "utime",
  ),
  "os.path": (
    "exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime",
    "samefile", "realpath", "abspath",
  ),
  "pathlib": ("Path",),
  "np": ("load", "save", "savez", "memmap", "fromfile", "loadtxt", "savetxt"),
  "shutil": (), "glob": (), "tempfile": (), "fcntl": (), "filelock": (),
  "mmap": (), "epath": (), "fsspec": (), "gcsfs": (),
}  # fmt: skip


def calls_in(source):
  """Yields (name, line) of the calls in a source that touch files."""
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    module, _, function = name.rpartition(".")
    if name == "open" or function == "safe_open":
      yield "open" if name == "open" else "safe_open", node.lineno
    elif module in TOUCHING:
      if not TOUCHING[module] or function in TOUCHING[module]:
        yield name, node.lineno


def passed_in(source):
  """Yields (name, line) of such functions that are passed on, as to map."""
  for node in ast.walk(ast.parse(source)):
    for value in node.args if isinstance(node, ast.Call) else ():
      if isinstance(value, ast.Attribute):
        name = ast.unparse(value)
        module, _, function = name.rpartition(".")
        if function in TOUCHING.get(module, ()):
          yield name, node.lineno


def test_no_other_module_opens_a_path_of_a_user():
  found, used = [], {}
  for path in sorted(PACKAGE.rglob("*.py")):
    module = path.relative_to(PACKAGE).as_posix()
    if module in OWN:
      continue
    allowed = ALLOWED.get(module, (set(), ""))[0]
    source = path.read_text("utf-8")
    for name, line in (*calls_in(source), *passed_in(source)):
      used.setdefault(module, set()).add(name)
      if name not in allowed:
        found.append(f"{module}:{line} calls {name}")
  assert not found, (
    "use bert_jax.runtime.files, which also knows buckets, or say in ALLOWED "
    "why not:\n" + "\n".join(found)
  )
  unused = {
    module: names - used.get(module, set())
    for module, (names, _) in ALLOWED.items()
  }
  unused = {module: names for module, names in unused.items() if names}
  assert not unused, f"ALLOWED has more than is used: {unused}"


def test_the_checker_sees_every_form():
  source = (
    "open(x)\nos.path.exists(x)\nnp.load(x)\nshutil.rmtree(x)\nx.open()\n"
  )
  assert [name for name, _ in calls_in(source)] == [
    "open", "os.path.exists", "np.load", "shutil.rmtree",
  ]  # fmt: skip
  assert list(passed_in("map(os.path.exists, x)")) == [("os.path.exists", 1)]
