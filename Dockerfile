# The pack as an image: for a machine with NVIDIA GPUs, or with CPUs alone. docs/containers.md shows both.
#
#   docker build -t strlora .
#   docker build -t strlora:cpu --build-arg BASE=debian:bookworm-slim --build-arg TORCH_INDEX_URL=INDEX .
#
# The CUDA of BASE is that of the torch wheels; nvcc is there for DeepSpeed's offloading alone.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM python:3.11-slim-bookworm AS python

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# What Python 3.11 (the version of requirements.lock) is linked with, a compiler for Triton, git.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates git \
       libbz2-1.0 libexpat1 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --from=python /usr/local/ /usr/local/
RUN ldconfig

WORKDIR /opt/strlora
# The packages come first: a change of the code keeps this layer.
COPY requirements.txt requirements-no-deps.txt requirements.lock ./
COPY recipes/setup.sh recipes/
COPY recipes/processes/missing_requirements.py recipes/processes/
COPY recipes/tools/torchvision_cpu_shim.py recipes/tools/
ARG TORCH_INDEX_URL=""
RUN bash recipes/setup.sh && rm -rf /root/.cache
ENV PATH=/opt/strlora/.venv/bin:$PATH
COPY . .

CMD ["bash", "recipes/run_stream.sh", "tiny"]
