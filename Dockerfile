# docker build --target cpu -t medrescue .      (or --target cuda: the NVIDIA container runtime provides the driver, torch's wheels the rest)
# docker run -v "$PWD/runs:/medrescue/runs" medrescue run PARAMS=params/cpu.yaml        (cuda: docker run --gpus all ...)
FROM python:3.12-slim AS base
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /medrescue
COPY Makefile quoting.mk requirements*.txt ./
ENTRYPOINT ["make"]

FROM base AS cpu
RUN make setup
COPY . .

FROM base AS cuda
# Triton, with which torch.compile and Unsloth generate kernels, needs a C compiler; there is no GPU while an image is built
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && python -m venv .venv && .venv/bin/pip install --no-cache-dir -r requirements.txt && touch .venv/.ready-requirements.txt
COPY . .
