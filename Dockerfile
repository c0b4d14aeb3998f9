# Two images from one file:
#   docker build --target operator -t registry.example.com/sftjob/operator:0.1.0 .
#   docker build --target trainer  -t registry.example.com/sftjob/trainer:0.1.0 .
# Bases are arguments, so that a platform's own, pinned by digest, can take their place; both need Python 3.11 or newer
# with venv. Behind a mirror or an inspecting proxy hand over `--secret id=package-index,src=FILE` (lines NAME='value'
# of PIP_* and UV_* variables) and `--secret id=ca-certificates,src=BUNDLE`: neither leaves a trace in the image.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
# What the operator runs on: nothing but Python is used of it, so one without shell and package manager will do, with
# the same Python at the same path.
ARG OPERATOR_IMAGE=${PYTHON_IMAGE}
# torch's wheels bring CUDA themselves, so no CUDA base is needed. One with cuda-compat helps older drivers.
ARG TRAINER_IMAGE=${PYTHON_IMAGE}
# Which torch the trainer has: as PyPI has it, with CUDA 13, or one of PyTorch's own index (cpu, cu126, ...: uv's --torch-backend), whose
# lock file `make lock-torch TORCH_BACKEND=cpu` writes beside trainer.txt.
ARG TORCH_BACKEND=
# What the labels say of where the image is from; `docs/install.md` shows how to fill them.
ARG VERSION=dev
ARG REVISION=
ARG CREATED=
ARG SOURCE=
ARG BASE_DIGEST=

# ---------------------------------------------------------------- what builds
FROM ${PYTHON_IMAGE} AS tools
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1
WORKDIR /source
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=package-index,target=/run/package-index \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    set -a && if [ -f /run/package-index ]; then . /run/package-index; fi && set +a && \
    python3 -m venv /opt/build && \
    /opt/build/bin/pip install --quiet --no-cache-dir --require-hashes -r requirements/build.txt

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY trainer trainer
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist

# ---------------------------------------------------------------- operator
FROM tools AS operator-environment
COPY requirements/operator.txt requirements/
# The kubernetes package (116 of 180 MiB) reads kubeconfigs, which a pod has none of; its imports are lazy, as the
# last line proves.
RUN --mount=type=secret,id=package-index,target=/run/package-index \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    set -a && if [ -f /run/package-index ]; then . /run/package-index; fi && set +a && \
    python3 -m venv --without-pip /opt/sftjob && \
    /opt/build/bin/uv pip install --quiet --python /opt/sftjob --require-hashes -r requirements/operator.txt && \
    /opt/build/bin/uv pip uninstall --quiet --python /opt/sftjob kubernetes
COPY --from=wheel /dist /dist
RUN /opt/build/bin/uv pip install --quiet --offline --python /opt/sftjob --no-deps /dist/*.whl && \
    /opt/sftjob/bin/python -c "import sftjob_operator.__main__"

FROM ${OPERATOR_IMAGE} AS operator
# USER: libraries that ask for the user's name fail on a bare UID without it.
ENV PATH=/opt/sftjob/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp USER=sftjob PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=operator-environment /opt/sftjob /opt/sftjob
WORKDIR /tmp
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/opt/sftjob/bin/python", "-m", "sftjob_operator"]
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
ARG BASE_DIGEST
ARG OPERATOR_IMAGE
LABEL org.opencontainers.image.title="SFTJob operator" \
      org.opencontainers.image.description="Drives SFTJobs: fine-tunes chat models on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${OPERATOR_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

# ---------------------------------------------------------------- trainer
FROM ${TRAINER_IMAGE} AS trainer-environment
ARG TORCH_BACKEND
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1
WORKDIR /source
COPY --from=tools /opt/build/bin/uv /usr/local/bin/uv
COPY requirements/trainer*.txt requirements/
# A mirror of PyTorch's index is UV_INDEX among the package-index settings; uv would not ask it beside --torch-backend.
RUN --mount=type=secret,id=package-index,target=/run/package-index \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    set -a && if [ -f /run/package-index ]; then . /run/package-index; fi && \
    if [ -n "$TORCH_BACKEND" ] && [ -z "$UV_INDEX" ]; then UV_TORCH_BACKEND=$TORCH_BACKEND; fi && set +a && \
    python3 -m venv --without-pip /opt/sftjob && \
    uv pip install --quiet --python /opt/sftjob --require-hashes -r requirements/trainer${TORCH_BACKEND:+-$TORCH_BACKEND}.txt

# What needs nvcc and would otherwise be compiled at first use, with an nvcc that no pod has. It is that of torch's own
# CUDA version, comes as a wheel and does not stay; torches of other indexes go without. By default nothing is: the
# optimizers are torch's own fused ones, on CPUs too.
FROM trainer-environment AS trainer-kernels
# Operations of DeepSpeed, such as "DS_BUILD_QUANTIZER=1" for ZeRO++'s quantised communication. Not CPUAdam: it is
# compiled for the very CPU it is built on, and would crash on an older one.
ARG DEEPSPEED_OPS=
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# 1: the package flash-attn too, for the architectures of FLASH_ATTN_CUDA_ARCHS: an hour on many cores, 2 GB of memory a job.
ARG FLASH_ATTENTION=
ARG FLASH_ATTN_CUDA_ARCHS="80;90"
ARG MAX_JOBS=4
COPY requirements/kernels.txt requirements/flash.txt requirements/
RUN mkdir /kernels && if [ -z "$DEEPSPEED_OPS$FLASH_ATTENTION" ] || [ -n "$TORCH_BACKEND" ]; then exit 0; fi && \
    apt-get update && apt-get install -y --no-install-recommends g++ python3-dev
RUN --mount=type=secret,id=package-index,target=/run/package-index \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    if [ -z "$DEEPSPEED_OPS$FLASH_ATTENTION" ] || [ -n "$TORCH_BACKEND" ]; then exit 0; fi && \
    set -a && if [ -f /run/package-index ]; then . /run/package-index; fi && set +a && \
    uv pip install --quiet --python /opt/sftjob --require-hashes -r requirements/kernels.txt && \
    packages=$(echo /opt/sftjob/lib/python3*/site-packages) && \
    export CUDA_HOME=$(echo $packages/nvidia/cu1*) && export PATH=/opt/sftjob/bin:$CUDA_HOME/bin:$PATH && \
    ln -s libcudart.so.1? $CUDA_HOME/lib/libcudart.so && ln -s lib $CUDA_HOME/lib64 && \
    if [ -n "$DEEPSPEED_OPS" ]; then \
        env DS_ACCELERATOR=cuda $DEEPSPEED_OPS \
        uv pip install --python /opt/sftjob --no-build-isolation --no-deps --require-hashes \
            --no-binary deepspeed --reinstall-package deepspeed -r requirements/trainer.txt && \
        ls $packages/deepspeed/ops/*/*.so && cp -r $packages/deepspeed* /kernels; fi && \
    if [ -n "$FLASH_ATTENTION" ]; then \
        FLASH_ATTENTION_FORCE_BUILD=TRUE \
        uv pip install --python /opt/sftjob --no-build-isolation --no-deps --require-hashes \
            --no-binary flash-attn -r requirements/flash.txt && \
        cp -r $packages/flash_attn* /kernels; fi

FROM trainer-environment AS trainer-complete
COPY --from=trainer-kernels /kernels /kernels
COPY --from=wheel /dist /dist
RUN cp -rT /kernels "$(echo /opt/sftjob/lib/python3*/site-packages)" && \
    uv pip install --quiet --offline --python /opt/sftjob --no-deps /dist/*.whl

# NCCL opens libibverbs by name and goes over TCP without a word where there is none. Only files are copied, so that
# the base needs neither apt nor a shell.
FROM ${PYTHON_IMAGE} AS rdma
WORKDIR /packages
RUN --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    apt-get update && apt-get download libibverbs1 ibverbs-providers libnl-3-200 libnl-route-3-200 && \
    for package in *.deb; do dpkg -x "$package" /rdma; done && \
    if [ -d /rdma/lib ]; then cp -r /rdma/lib /rdma/usr && rm -r /rdma/lib; fi && rm -r /rdma/usr/share

FROM ${TRAINER_IMAGE} AS trainer
# Not NVIDIA_VISIBLE_DEVICES: the device plugin sets it for the pods that were given GPUs, and for no others.
ENV PATH=/opt/sftjob/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp USER=sftjob PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=rdma /rdma/etc /etc
COPY --from=rdma /rdma/usr /usr
COPY --from=trainer-complete /opt/sftjob /opt/sftjob
WORKDIR /tmp
USER 65532:65532
EXPOSE 9400
ENTRYPOINT ["/opt/sftjob/bin/python", "-m", "sft_trainer"]
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
ARG BASE_DIGEST
ARG TRAINER_IMAGE
LABEL org.opencontainers.image.title="SFTJob trainer" \
      org.opencontainers.image.description="Prepares data and fine-tunes chat models with DeepSpeed" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${TRAINER_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
