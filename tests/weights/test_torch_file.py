"""Files of torch.save, read without torch: values, damage, and code in them."""

import argparse
import collections
import importlib.util
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import weights
from bert_jax.weights import pickled
from bert_jax.weights import torch_file
from tests.support import torch_saving
from tests.support.small_models import assert_same
from tests.support.small_models import make

LAYOUTS = ("zip", "legacy")
DTYPES = {
  "FloatStorage": np.float32, "DoubleStorage": np.float64,
  "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
  "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
  "ComplexFloatStorage": np.complex64,
}  # fmt: skip


def array(dtype, shape=(3, 4)):
  values = np.random.default_rng(0).integers(0, 100, shape)
  return (values % 2 if dtype == np.bool_ else values).astype(dtype)


def read(path, content, layout, **options):
  torch_saving.save(path, content, layout, **options)
  return torch_file.read(path)


# --- values ------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_comes_back_with_its_bytes(tmp_path, layout):
  given = {name: array(dtype) for name, dtype in DTYPES.items()}
  given |= {"scalar": array(np.float32, ()), "empty": array(np.int64, (0, 3))}
  found = read(tmp_path / "x.pt", given, layout)
  assert found.keys() == given.keys()
  for name, wanted in given.items():
    assert found[name].dtype == wanted.dtype
    assert found[name].shape == wanted.shape
    assert found[name].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_containers_and_namespaces_are_plain_data(tmp_path, layout):
  args = argparse.Namespace(arch="roberta", lr=[0.1], bpe=None, seed=1)
  given = {
    "args": args,
    "model": collections.OrderedDict(w=array(np.float32)),
    "extra": {"loss": 1.388, "set": {1, 2}, "pair": (True, b"\x00", 2**70)},
    "shared": (deep := [1, [2]], deep),
  }
  for protocol in (2, 4):
    found = read(tmp_path / "x.pt", given, layout, protocol=protocol)
    assert found["args"] == vars(args)
    assert found["extra"] == given["extra"]
    assert found["shared"] == given["shared"]
    assert found["shared"][0] is found["shared"][1]
    np.testing.assert_array_equal(found["model"]["w"], given["model"]["w"])
    state = torch_file.read_state(tmp_path / "x.pt")
    assert [*state] == ["w"]


def test_parameters_are_found_under_the_keys_of_other_programs(tmp_path):
  """Of a loss beside them, of Composer, and of a file of parameters alone."""
  w = array(np.float32)
  for content in (
    {"loss": array(np.float32, ()), "model": {"w": w}, "epoch": 1},
    {"state": {"model": {"w": w}, "optimizers": {}}, "rng": [1]},
    {"state_dict": {"w": w, "version": 3}},
    {"w": w},
  ):
    torch_saving.save(tmp_path / "x.pt", content, "zip")
    found = torch_file.read_state(tmp_path / "x.pt")
    assert [*found] == ["w"]
    np.testing.assert_array_equal(found["w"], w)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_a_storage_are_taken_by_offset_and_stride(tmp_path, layout):
  values = np.arange(24, dtype=np.float32)
  tensor = torch_saving.Tensor
  given = {
    "rows": tensor(values, 4, (2, 3), (3, 1)),
    "transposed": tensor(values, 0, (4, 3), (1, 4)),
    "one": tensor(values, 23, (), ()),
  }
  found = read(tmp_path / "x.pt", given, layout)
  np.testing.assert_array_equal(found["rows"], values[4:10].reshape(2, 3))
  np.testing.assert_array_equal(
    found["transposed"], values[:12].reshape(3, 4).T
  )
  assert found["one"] == 23


def test_big_endian_archives_are_read(tmp_path):
  given = {"w": array(np.float32), "i": array(np.int64)}
  found = read(tmp_path / "x.pt", given, "zip", byteorder="big")
  for name in given:
    np.testing.assert_array_equal(found[name], given[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_with_a_pickle_gives_the_model(tmp_path, layout, shards):
  wanted = make("classify")
  weights.write(wanted, tmp_path / "a", "huggingface")
  folder = tmp_path / "a"
  tensors = weights_of(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  if shards:
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
      file = f"pytorch_model-{number}.bin"
      torch_saving.save(folder / file, {n: tensors[n] for n in part}, layout)
      places |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)
  else:
    torch_saving.save(folder / "pytorch_model.bin", tensors, layout)
  found = weights.read(folder)
  assert_same(found.params, wanted.params)
  assert found.kind == wanted.kind and not found.missing
  if not shards:
    again = weights.read(folder / "pytorch_model.bin")
    assert_same(again.params, wanted.params)


def weights_of(path):
  return safetensors.numpy.load_file(path)


# --- what is refused ---------------------------------------------------------


class Runs:
  """A pickle of it calls a function."""

  def __init__(self, function, *args):
    self.call = (function, args)

  def __reduce__(self):
    return self.call


CODE = {
  r"(posix|os).system": (os.system, "touch ran"),
  r"builtin(s|__).eval": (eval, "open('ran', 'w')"),
  r"builtin(s|__).exec": (exec, "open('ran', 'w')"),
  r"builtin(s|__).getattr": (getattr, "x", "upper"),
  r"builtin(s|__).__import__": (__import__, "os"),
  "io.open|_io.open": (open, "ran", "w"),
  r"builtin(s|__).print": (print, "x"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(CODE))
def test_code_in_a_file_is_refused_by_name_and_not_run(
  tmp_path, monkeypatch, layout, name
):
  monkeypatch.chdir(tmp_path)
  for protocol in (0, 2, 4):
    torch_saving.save(
      tmp_path / "x.bin", {"w": Runs(*CODE[name])}, layout, protocol=protocol
    )
    with pytest.raises(torch_file.TorchFileError, match=name):
      torch_file.read("x.bin")
  assert not os.path.exists("ran")


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
    (b"(S'touch ran'\nios\nsystem\n.", "INST"),
    (b"(cos\nsystem\nS'touch ran'\no.", "os.system"),
    (b"\x82\x01.", "EXT1"),
    (b"P0\n.", "PERSID"),
    (b"ctorch\nFloatStorage\n(tR.", "not a function"),
    (b"ctorch\nFloatStorage\n}S'a'\nK\x01sb.", "sets attributes of a Global"),
    (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "makes bytes"),
    (b"ccopyreg\n_reconstructor\n(ctorch\nSize\ncbuiltins\nobject\nNtR.",
     "torch.Size"),
    (b"}()\x85K\x01u.", "a key is a tuple"),
    (b"K\x01K\x02a.", "appends to a int"),
    (b"cbuiltins\nlist\n(X\x01\x00\x00\x00atR.", "makes a list of a str"),
    (b"ctorch\ndevice\n()" + b"2\x86" * 60 + b"tR.", "device is not a name"),
    (b"", "damaged"),
    (b"\x80\x02", "damaged"),
  ],
)  # fmt: skip
def test_a_pickle_that_is_not_data_is_refused(code, message):
  with pytest.raises(pickled.PickleError, match=message):
    pickled.load(io.BytesIO(code), torch_file._CALLS, torch_file._NAMES)


def test_a_key_that_takes_for_ever_to_hash_is_refused():
  code = b")" + b"2\x86" * 200 + b"}2\x86."  # tuples of tuples, shared
  keyed = b"})" + b"2\x86" * 200 + b"K\x01s."
  assert isinstance(pickled.load(io.BytesIO(code), {}), tuple)
  with pytest.raises(pickled.PickleError, match="a key is a"):
    pickled.load(io.BytesIO(keyed), {})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  ("view", "message"),
  [
    (dict(offset=25), "ends at element"),
    (dict(size=(5, 5), stride=(5, 1)), "ends at element 24"),
    (dict(size=(2**40, 2**40), stride=(0, 0)), "share the 24"),
    (dict(size=(-1,), stride=(1,)), "size is not made of counts"),
    (dict(size=(2,), stride=(-1,)), "stride is not made of counts"),
    (dict(size=(2,), stride=()), "do not fit"),
    (dict(size=(True,), stride=(1,)), "not made of counts"),
    (dict(size=(1,) * 99, stride=(1,) * 99), "not a short list"),
    (dict(offset=-1), "do not fit"),
    (dict(offset=2**80), "do not fit"),
  ],
)
def test_a_view_outside_of_its_storage_is_refused(
  tmp_path, layout, view, message
):
  values = np.arange(24, dtype=np.float32)
  view = {"offset": 0, "size": (2, 3), "stride": (3, 1)} | view
  given = {"w": torch_saving.Tensor(values, **view)}
  with pytest.raises(torch_file.TorchFileError, match=message):
    read(tmp_path / "x.pt", given, layout)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(numel=10**12), "bytes; its tensors need|truncated"),
    (dict(kind="QInt8Storage"), "torch.QInt8Storage"),
    (dict(module="os", kind="system"), "os.system"),
    (dict(tag="module"), "refers to a module"),
  ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_storage_that_is_not_there_is_refused(
  tmp_path, layout, change, message
):
  with pytest.raises(torch_file.TorchFileError, match=message):
    read(tmp_path / "x.pt", {"w": array(np.float32)}, layout, storage=change)


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "x.pt"
  for content, message in (
    (b"", "neither a zip archive"),
    (b"PK\x03\x04", "damaged|zip"),
    (pickle.dumps(5), "neither a zip archive"),
    (pickle.dumps({"w": 1}), "neither a zip archive"),
  ):
    path.write_bytes(content)
    with pytest.raises(torch_file.TorchFileError, match=message):
      torch_file.read(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/data.pkl", pickle.dumps(5))
    archive.writestr("a/constants.pkl", b"")
  with pytest.raises(torch_file.TorchFileError, match="TorchScript"):
    torch_file.read(path)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", b"0" * 10**6)
  with pytest.raises(torch_file.TorchFileError, match="compressed"):
    torch_file.read(path)
  torch_saving.save(path, {"lr": 1, "epoch": 2}, "zip")
  with pytest.raises(torch_file.TorchFileError, match="it has lr, epoch"):
    torch_file.read_state(path)


# --- damage ------------------------------------------------------------------


def damage(content, rng):
  """Changes, removes, repeats or swaps some bytes."""
  damaged = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    at = rng.randrange(len(damaged))
    choice = rng.randrange(5)
    if choice == 0:
      damaged[at] = rng.randrange(256)
    elif choice == 1:
      del damaged[at : at + rng.randint(1, 9)]
    elif choice == 2:
      damaged[at:at] = rng.randbytes(rng.randint(1, 9))
    elif choice == 3:
      damaged[at] ^= 1 << rng.randrange(8)
    else:
      del damaged[rng.randrange(len(damaged)) :]
    if not damaged:
      return b""
  return bytes(damaged)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  "count", [150, pytest.param(5_000, marks=pytest.mark.slow)]
)
def test_damaged_files_are_read_or_refused(tmp_path, layout, count):
  """Whatever the bytes: data of plain types, or one kind of error."""
  path = tmp_path / "x.pt"
  given = {
    "model": {"w": array(np.float32), "i": array(np.int64, (2,))},
    "args": argparse.Namespace(lr=0.1, words=["a", "b"]),
    "n": (1, None, {2.5}),
  }
  torch_saving.save(path, given, layout)
  whole = path.read_bytes()
  rng = random.Random(count)
  refused = 0
  for _ in range(count):
    path.write_bytes(damage(whole, rng))
    try:
      found = torch_file.read(path)
    except torch_file.TorchFileError as error:
      assert str(path) in str(error)
      refused += 1
    else:
      _assert_plain(found)
  assert refused > count // 3


@pytest.mark.parametrize(
  "count", [300, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_damaged_pickles_run_nothing(tmp_path, monkeypatch, count):
  """A damaged name is refused, and nothing of it is looked up."""
  monkeypatch.chdir(tmp_path)
  codes = [
    pickle.dumps(Runs(os.system, "touch ran"), protocol)
    for protocol in (0, 2, 4)
  ]
  codes.append(pickle.dumps({"a": [1, (2, {3: "x"})], "b": {4}}, 4))
  rng = random.Random(count)
  for number in range(count):
    code = damage(codes[number % 4], rng)
    try:
      found = pickled.load(io.BytesIO(code), torch_file._CALLS)
    except pickled.PickleError:
      continue
    _assert_plain(found)
  assert not os.path.exists("ran")


def _assert_plain(value):
  if isinstance(value, dict):
    for key, item in value.items():
      _assert_plain(key)
      _assert_plain(item)
  elif isinstance(value, (list, tuple, set, frozenset)):
    for item in value:
      _assert_plain(item)
  else:
    plain = (str, bytes, int, float, bool, type(None), np.ndarray)
    known = (pickled.Global, torch_file._Tensor, pickled._Mark)
    assert isinstance(value, (*plain, *known)), type(value)


def test_every_opcode_is_run_or_refused():
  known = {"STOP", "PROTO", "FRAME", *pickled._VALUES, *pickled._CONSTANTS}
  known |= pickled._FUNCTIONS.keys()
  names = {opcode.name for opcode in pickletools.opcodes}
  assert known <= names
  assert names - known == {
    "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID",
    "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER",
  }  # fmt: skip


# --- the reference -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("package", "pattern"),
  [
    ("rxnmapper", "models/**/pytorch_model.bin"),
    ("sapiens", "models/**/*.pt"),
  ],
)
def test_released_files_have_the_values_of_torch(package, pattern):
  torch = pytest.importorskip("torch")
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    pytest.skip(f"{package} is not installed")
  [folder] = found.submodule_search_locations
  paths = sorted(pathlib.Path(folder).glob(pattern))
  assert paths
  for path in paths:
    wanted = torch.load(path, map_location="cpu", weights_only=False)
    wanted = wanted.get("model", wanted)
    state = torch_file.read_state(path)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
      assert state[name].shape == tuple(value.shape)
      assert state[name].tobytes() == value.contiguous().numpy().tobytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch_give_its_values(tmp_path, is_zip):
  torch = pytest.importorskip("torch")
  layer = torch.nn.Linear(3, 4)
  base = torch.arange(24.0)
  given = {
    "model": layer.state_dict(),
    "parameter": torch.nn.Parameter(torch.ones(2, 3)),
    "view": base[4:].reshape(4, 5).t(),
    "half": base.half(),
    "bfloat16": base.bfloat16(),
    "bool": base > 3,
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "complex": torch.view_as_complex(torch.ones(12, 2)),
    "uint16": torch.tensor([1, 2], dtype=torch.uint16),
    "args": argparse.Namespace(lr=[0.1], arch="x"),
    "size": layer.weight.shape,
    "device": torch.device("cpu"),
  }
  path = tmp_path / "x.pt"
  torch.save(given, path, _use_new_zipfile_serialization=is_zip)
  found = torch_file.read(path)
  assert found["args"] == vars(given["args"])
  assert found["size"] == (4, 3)
  for name, value in (given | given["model"]).items():
    if isinstance(value, torch.Tensor):
      got = (found | found["model"])[name]
      value = value.detach().contiguous()
      assert got.shape == tuple(value.shape), name
      raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
      assert got.tobytes() == raw, name
