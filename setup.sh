#!/usr/bin/env bash
# Make .venv/ with the exact versions of requirements.lock, and of requirements-cuda.lock where torch is a CUDA build. Both commands
# of the README call this; it does nothing when done.
set -euo pipefail
cd "$(dirname "$0")"

wanted=$(cat requirements.lock requirements-cuda.lock pyproject.toml | cksum)
[ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ] && exit 0

for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
  [ -n "$python" ] && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  python=
done
if [ -z "$python" ]; then
  echo "setup.sh: no Python 3.11 or newer with the venv module was found." >&2
  echo "  what to do: install one (Debian and Ubuntu: python3 and python3-venv), or name it: PYTHON=/path/to/python ./reproduce.sh" >&2
  exit 2
fi

echo "Installing the packages of requirements.lock into .venv/ (a few minutes, once; 2 GB of disk, or 6 with CUDA) ..." >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip install --progress-bar on --quiet -r requirements.lock -c requirements-cuda.lock
if .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
  .venv/bin/python -m pip install --quiet --no-deps -c requirements-cuda.lock bitsandbytes ||
    echo "setup.sh: bitsandbytes could not be installed; only a base model in 4 bits (finetune.four_bit) needs it" >&2
fi
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
printf '%s\n' "$wanted" > .venv/installed
