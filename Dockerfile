# Two images from one file:
#   docker build --target controller -t luthier-controller .     the control plane, without torch
#   docker build --target trainer    -t luthier-trainer .        a trainer node
# Versions come from constraints.txt. TORCH_INDEX names an extra package index for another build of torch.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- build stages: compilers and sources stay here --------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS build
# A few pinned packages have no wheel for every platform; deepspeed is published as source only.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
# One virtual environment is all that the final stages copy.
RUN python -m venv /opt/luthier
ENV PATH=/opt/luthier/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN pip install -c constraints.txt setuptools wheel

FROM build AS build-controller
COPY . .
RUN pip install -c constraints.txt --no-build-isolation '.[controller]'

FROM build AS build-trainer
ARG TORCH_INDEX=
RUN pip install -c constraints.txt ninja packaging numpy
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
# DS_BUILD_OPS=0: no DeepSpeed op is compiled, here or at job start. Luthier's optimisers are torch's; an op that is compiled on
# demand would need a compiler in the image, cost minutes at the first job, and leave a lock that can hang later ones.
# --no-build-isolation: the build sees the torch above instead of fetching another one.
RUN DS_BUILD_OPS=0 pip install -c constraints.txt --no-build-isolation deepspeed
COPY . .
RUN pip install -c constraints.txt --no-build-isolation '.[trainer]'

# --- final stages: no compiler, no sources, no root --------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime
# A numeric user, so that Kubernetes can verify runAsNonRoot. The root file system may be read-only: everything that is written goes to
# /var/lib/luthier (state) or /tmp (mount an emptyDir or tmpfs on both).
RUN useradd --uid 10001 --user-group --home-dir /var/lib/luthier --create-home --shell /usr/sbin/nologin luthier
ENV PATH=/opt/luthier/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    LUTHIER_STATE_DIR=/var/lib/luthier \
    MPLCONFIGDIR=/tmp/matplotlib \
    TRITON_CACHE_DIR=/tmp/triton \
    HF_HUB_OFFLINE=1
WORKDIR /var/lib/luthier
VOLUME /var/lib/luthier

FROM runtime AS controller
COPY --from=build-controller /opt/luthier /opt/luthier
USER 10001:10001
# gRPC and HTTP (metrics, healthz, readyz, version, sd).
EXPOSE 7431 7432
# /healthz answers while the process lives; orchestrators should use /readyz for traffic (it fails while draining).
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7432/healthz', timeout=2)"]
ENTRYPOINT ["luthier"]
CMD ["up"]

FROM runtime AS trainer
COPY --from=build-trainer /opt/luthier /opt/luthier
USER 10001:10001
# The agent exits with the codes of docs/operating.md and serves /healthz on the port that it announces: probes belong to the executor
# that knows that port, so there is none here.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "luthier.trainer_node.agent"]
