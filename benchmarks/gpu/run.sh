#!/usr/bin/env bash
# What only a GPU can settle, on any NVIDIA card of 80 GB or more: ten minutes, 64 GB of disk. Needs the repository with data/ and
# pretrain/models/ in it (`make data`), and Python with PyTorch: .venv/ or, without a network, what prepare.sh put into .gpu/.
#
#   benchmarks/gpu/run.sh              # each check has a limit of its own, and the others go on if one fails
#   TRIAL=1 benchmarks/gpu/run.sh      # the same in miniature, on a processor: do all checks run?
#
# WORK: folder for a model of 19 GB and the results, results.json and log.txt. OUT: one to which those two are copied.
# PYTHON: which Python.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
export WORK=${WORK:-/tmp/mi-llm-gpu} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
here=$(command -v .venv/bin/python || command -v python3)
python=${PYTHON:-$here}
mkdir -p "$WORK"
rm -f "$WORK/results.json"
[ -n "${TRIAL:-}" ] && export OMP_NUM_THREADS=1
export PYTHONPATH=$PWD/src:$PWD/benchmarks
if ! "$python" -c 'import importlib.util; raise SystemExit(not importlib.util.find_spec("dvclive"))'; then
  # A bare machine: its own PyTorch, our packages.
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
    --find-links .gpu --target "$WORK/site" -r .gpu/requirements.txt || exit 3
  # dvclive wants all of DVC; the curves that it writes are not looked at here.
  cat >"$WORK/site/dvclive.py" <<'PYTHON'
class Live:
    def __init__(self, *_, **__): self.step = 0
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def log_metric(self, *_): pass
    def make_summary(self): pass
PYTHON
  PYTHONPATH=$WORK/site:$PYTHONPATH
fi

failed=0
check() {
  local began=$SECONDS limit=$2
  [ -n "${TRIAL:-}" ] && limit=300
  echo "=== $1, at most $limit s"
  timeout --kill-after 5 "$limit" "$python" benchmarks/gpu/check.py "$1" ${TRIAL:+--trial} </dev/null
  local status=$?
  echo "--- $1: status $status, $((SECONDS - began)) s"
  [ $status -eq 0 ] || failed=1
}
{
  check environment 60
  check determinism 60
  check attention 40
  check checkpoint 90
  check finetune 170
  check respond 110
  check keys_and_values 80
  check four_bit 60
  exit $failed
} 2>&1 | tee "$WORK/log.txt"
status=${PIPESTATUS[0]}
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  cp "$WORK/results.json" "$WORK/log.txt" "$OUT"
fi
exit "$status"
