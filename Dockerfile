# The image that hosts of a TPU slice, or any other machine, run:
#
#   docker build --tag=REGION-docker.pkg.dev/PROJECT/images/bert_jax:1 .
#   docker run IMAGE bert-jax --help
#
# It holds the package with the versions of the lock, the tools of its tests among
# them, and the extras for buckets (gcs) and TPUs (tpu), whose versions setup.py
# bounds where the lock has none. It holds nothing secret: hosts get their rights
# from the cloud. For a smaller image without TPUs: --build-arg=EXTRAS=gcs.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG EXTRAS=tpu,gcs
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# What the lock pins changes seldom, and so does this layer.
WORKDIR /opt/bert_jax
COPY requirements*.lock ./
ARG LOCK=requirements.lock
RUN pip install --no-deps --requirement "${LOCK}"

COPY setup.py pyproject.toml LICENSE ./
COPY bert_jax bert_jax
COPY configs configs
COPY experiments experiments
# Not root: TPU jobs ask for the devices by themselves (launching/gke.py).
RUN pip install --constraint "${LOCK}" ".[${EXTRAS}]" \
    && useradd --create-home --home-dir=/bert --uid=1000 bert
USER 1000
WORKDIR /bert
CMD ["bert-jax", "--help"]
