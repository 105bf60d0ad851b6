# The study's images: `study` runs it on a mounted repository, `web` holds the model server, the chat and the coding desk, `store`
# is a DVC remote. CUDA's libraries come once, with PyTorch's packages; the host's driver is mounted. docs/containers.md explains.
ARG BASE_IMAGE=ubuntu:24.04@sha256:008173c23f95b170204355c12626cb5a965d779a7e1283b09e9cffbb1bf33ca3
ARG STORE_IMAGE=nginx:1.30.4-alpine@sha256:97d490c12ba55b4946b01546d1c3ed324e8d41ab1c9fcb2a616aa470620e5b46

# ---- what every stage stands on: Python, an init process that passes signals on, a user without rights
FROM ${BASE_IMAGE} AS system
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV LANG=C.UTF-8
# Versions are those of the base's release. The logs and caches that apt leaves hold the time, so that no two builds would be equal.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/log/* /var/cache/ldconfig/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
# Ubuntu's image has a user of number 1000 already. Files that people mount belong to any number, so nothing here depends on it.
RUN if name=$(id -nu 1000 2>/dev/null); then userdel --remove "$name" 2>/dev/null; fi \
    && groupadd --gid 1000 study \
    && useradd --uid 1000 --gid 1000 --no-log-init --create-home --home-dir /home/study --shell /bin/bash study \
    && install -d -m 1777 /home/study /data \
    && install -d -o study -g study /study \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- /var/log/*log

# ---- the packages of both lock files, in an environment that the images below copy
FROM system AS packages
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
# Another index in front of the public one, for instance PyTorch's own with CPU builds; an address with a password belongs into the
# secret `pip`, a pip configuration file, which no layer keeps.
ARG PIP_EXTRA_INDEX_URL=
# Byte code names its source by hash, not by time. Some packages hold files for other versions of Python, which do not compile.
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_CONFIG_FILE=/run/secrets/pip PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=cache,target=/var/cache/pip,sharing=locked \
    --mount=type=secret,id=pip,target=/run/secrets/pip \
    --mount=type=bind,source=requirements.lock,target=/requirements.lock \
    --mount=type=bind,source=requirements-cuda.lock,target=/requirements-cuda.lock \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-compile -r /requirements.lock -c /requirements-cuda.lock \
    && if /opt/venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; \
       then /opt/venv/bin/python -m pip install --no-compile --no-deps -c /requirements-cuda.lock bitsandbytes; fi \
    && find /opt/venv -name __pycache__ -prune -exec rm -rf {} + \
    && { /opt/venv/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/venv || true; } \
    && /opt/venv/bin/python -c 'import dvc, peft, torch, transformers' \
    && install -d /layer/opt \
    && mv /opt/venv /layer/opt/ \
    && find /layer -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# ---- what both images have in common
FROM system AS runtime
# From a tree of its own: so even the time of /opt is the one above, and the layer has the same bytes whenever it is made.
COPY --from=packages /layer /
# A number without a name in /etc/passwd still needs a name and a home; both are what a read-only container mounts as memory.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/home/study USER=study LOGNAME=study \
    MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /study
ENTRYPOINT ["tini", "--", "mi-llm"]
CMD ["--help"]

# ---- the study's own code as a wheel, for the images that do not mount it
FROM runtime AS wheel
ARG SOURCE_DATE_EPOCH=0
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY src ./src
RUN python -m pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheel .

# ---- web: what people open in a browser, and the model server behind it
FROM runtime AS web
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python -m pip install --no-index --no-deps --no-cache-dir --no-compile /wheel/*.whl \
    && python -m compileall -q -f --invalidation-mode unchecked-hash /opt/venv/lib/python3*/site-packages/mi_llm
# Where a container of this image answers that it is well; docker-compose.yml names each service's.
ENV MI_LLM_HEALTH=http://127.0.0.1:8000/ready
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ['MI_LLM_HEALTH'], timeout=5)"]
ARG BASE_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="MI-LLM: model server, chat and coding desk" \
    org.opencontainers.image.description="Research demonstration of counseling models for motivational interviewing; not care" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.url="https://doi.org/10.2196/89077" \
    org.opencontainers.image.base.name="${BASE_IMAGE}" \
    org.opencontainers.image.revision="${REVISION}"
USER 1000:1000

# ---- study: runs the mounted repository, whose own code it is that runs
FROM runtime AS study
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends fontconfig fonts-wqy-microhei git \
    && rm -rf /var/log/* /var/cache/ldconfig/* /var/cache/fontconfig/* /var/cache/debconf/*-old /var/lib/dpkg/*-old \
    && git config --system --add safe.directory /study
ARG SOURCE_DATE_EPOCH=0
# The package is an address: /study/src, where the repository will be.
RUN --mount=type=bind,target=/study,rw \
    python -m pip install --no-deps --no-build-isolation --no-cache-dir --no-compile --editable /study
# What DVC remembers of the files it has hashed stays with the repository, like the rest of its notes.
ENV DVC_SITE_CACHE_DIR=/study/.dvc/tmp/site
ARG BASE_IMAGE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="MI-LLM: the study" \
    org.opencontainers.image.description="Runs the executable study of JMIR Form Res 2026;10:e89077 on a mounted repository" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.url="https://doi.org/10.2196/89077" \
    org.opencontainers.image.base.name="${BASE_IMAGE}" \
    org.opencontainers.image.revision="${REVISION}"
HEALTHCHECK NONE
USER 1000:1000
CMD ["reproduce", "mini"]

# ---- store: a DVC remote, from a server off the shelf
FROM ${STORE_IMAGE} AS store
COPY --chmod=0644 docker/store.conf /etc/nginx/nginx.conf
RUN install -d -m 1777 /data
USER 1000:1000
EXPOSE 8900
STOPSIGNAL SIGQUIT
ENTRYPOINT ["nginx", "-e", "stderr", "-g", "daemon off;"]
CMD []
