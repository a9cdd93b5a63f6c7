# Two images from one file. `compile` has PyTorch and makes bundles; `runtime` only runs them.
#   docker build --target compile -t ptdeploy-compile .
#   docker build --target runtime -t ptdeploy .
#   docker run --rm -v "$PWD:/work" ptdeploy run model.ort.bundle "text"
#
# ENGINE is the engine's extra, cpu or cuda. For cuda, the CUDA and cuDNN libraries come from one of
#   --build-arg CUDA_LIBRARIES='onnxruntime-gpu[cuda,cudnn]'   as Python packages, or
#   --build-arg RUNTIME_BASE=IMAGE (COMPILE_BASE=IMAGE)        from an NVIDIA base image, which
# must have `python` (3.11 or later), `pip`, and the CUDA version onnxruntime-gpu is built for.
#
# TORCH_INDEX names an extra package index with CPU builds of torch (compile only). Without it, pip
# on Linux takes the default build of torch, which brings gigabytes of CUDA packages with it.
ARG PYTHON_BASE=python:3.11-slim-bookworm
ARG COMPILE_BASE=python:3.11-slim-bookworm
ARG RUNTIME_BASE=python:3.11-slim-bookworm

FROM ${PYTHON_BASE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY ptdeploy ptdeploy
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The wheel and the constraints are mounted, not copied, so no layer keeps them. The libraries that
# Python packages bring are outside the loader's path, where onnxruntime-gpu does not find them;
# ldconfig adds their folders.
FROM ${COMPILE_BASE} AS compile
ARG ENGINE=cpu
ARG CUDA_LIBRARIES=
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="ptdeploy compile" \
      org.opencontainers.image.description="Compiles P-Tuned language models to bundles"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -eu; \
    wheel="$(echo /wheels/ptdeploy-*.whl)"; \
    pip install --no-cache-dir -c /constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        "${wheel}[${ENGINE},compile]" ${CUDA_LIBRARIES:+"${CUDA_LIBRARIES}"}; \
    if [ "${ENGINE}" = cuda ]; then \
        packages="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
        find "${packages}" -path '*/nvidia/*' -type d -name lib > /etc/ld.so.conf.d/ptdeploy.conf; \
        ldconfig; \
    fi; \
    useradd --create-home --uid 10001 ptdeploy; \
    install -d -o ptdeploy -g ptdeploy /work
USER 10001
WORKDIR /work
ENTRYPOINT ["ptdeploy"]

FROM ${RUNTIME_BASE} AS runtime
ARG ENGINE=cpu
ARG CUDA_LIBRARIES=
LABEL org.opencontainers.image.title="ptdeploy runtime" \
      org.opencontainers.image.description="Runs ptdeploy bundles, without PyTorch"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -eu; \
    wheel="$(echo /wheels/ptdeploy-*.whl)"; \
    pip install --no-cache-dir -c /constraints.txt \
        "${wheel}[${ENGINE}]" ${CUDA_LIBRARIES:+"${CUDA_LIBRARIES}"}; \
    if [ "${ENGINE}" = cuda ]; then \
        packages="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
        find "${packages}" -path '*/nvidia/*' -type d -name lib > /etc/ld.so.conf.d/ptdeploy.conf; \
        ldconfig; \
    fi; \
    useradd --create-home --uid 10001 ptdeploy; \
    install -d -o ptdeploy -g ptdeploy /work
USER 10001
WORKDIR /work
ENTRYPOINT ["ptdeploy"]
