# Two images from one file, for the CPU or for CUDA:
#   docker build --target runtime -t ptdeploy .
#   docker build --target compile -t ptdeploy-compile .
#   docker build --target runtime --build-arg ENGINE=cuda --build-arg RUNTIME_BASE=<CUDA image> .
# With ENGINE=cuda, RUNTIME_BASE must bring Python 3.11 and the CUDA and cuDNN libraries that
# onnxruntime-gpu needs. TORCH_INDEX may name an index with CPU builds of torch: the default one
# serves Linux builds that bring gigabytes of CUDA libraries.
ARG PYTHON_BASE=python:3.11-slim-bookworm
ARG RUNTIME_BASE=python:3.11-slim-bookworm

FROM ${PYTHON_BASE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY ptdeploy ptdeploy
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_BASE} AS compile
ARG ENGINE=cpu
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="ptdeploy compile"
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN set -eu; wheel="$(ls /tmp/wheels/ptdeploy-*.whl)"; \
    pip install --no-cache-dir -c /tmp/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        "${wheel}[${ENGINE},compile]"; \
    rm -rf /tmp/wheels /tmp/constraints.txt; \
    useradd --create-home --uid 10001 ptdeploy
USER 10001
WORKDIR /work
ENTRYPOINT ["ptdeploy"]

FROM ${RUNTIME_BASE} AS runtime
ARG ENGINE=cpu
LABEL org.opencontainers.image.title="ptdeploy runtime"
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN set -eu; wheel="$(ls /tmp/wheels/ptdeploy-*.whl)"; \
    pip install --no-cache-dir -c /tmp/constraints.txt "${wheel}[${ENGINE}]"; \
    rm -rf /tmp/wheels /tmp/constraints.txt; \
    useradd --create-home --uid 10001 ptdeploy
USER 10001
WORKDIR /work
ENTRYPOINT ["ptdeploy"]
