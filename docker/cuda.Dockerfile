# SPDX-License-Identifier: Apache-2.0
# CUDA 12's libraries come with JAX's wheels: the host needs NVIDIA's driver and container toolkit.
#   docker build --file docker/cuda.Dockerfile --tag albert-jax:cuda .
#   docker run --rm --gpus all --volume "$PWD:/work" albert-jax:cuda benchmark
# docs/how-to/container.md tells more; launch/Dockerfile is the image of GKE's jobs.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /source
RUN python -m venv /opt/albert-jax
ENV PATH=/opt/albert-jax/bin:$PATH
# Before the code, so that another version of it installs nothing else anew.
COPY requirements.lock requirements-cuda.lock ./
RUN pip install --no-cache-dir --require-hashes \
    --requirement requirements.lock \
    --requirement requirements-cuda.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY albert_jax albert_jax
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

FROM python:${PYTHON}-slim
COPY --from=build /opt/albert-jax /opt/albert-jax
# Not root. Files in /work are this user's; with docker run --user "$(id -u)" they are yours.
RUN useradd --uid 1000 --create-home albert && mkdir /work && chown albert /work
USER 1000
# Compiled programs are kept where any user may write.
ENV PATH=/opt/albert-jax/bin:$PATH HOME=/home/albert XDG_CACHE_HOME=/tmp/cache
WORKDIR /work
ENTRYPOINT ["albert-jax"]
CMD ["--help"]
