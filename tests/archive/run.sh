#!/usr/bin/env bash
# The proof of the archive: unpacked alone in an empty folder, without a network, it runs the miniature and the audit to the same bytes.
#   tests/archive/run.sh [FILE [WHEELS]]
#     FILE    the archive (default: the one in dist/)
#     WHEELS  a folder with the files of packages.csv (default: downloaded first)
# The audit runs if MI_LLM_MIRROR, or ../shared/upstream, holds the public archives. Takes a quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
archive=$(realpath "${1:-$(ls dist/mi-llm-*.zip)}")
wheels=${2:-}
mirror=${MI_LLM_MIRROR:-../shared/upstream}
python=${PYTHON:-python3}

fail() { echo "test-archive: $1" >&2; exit 1; }

alone=(unshare --net --map-root-user)
if ! "${alone[@]}" true 2>/dev/null; then
  alone=()
  echo "test-archive: unshare --net is not allowed here: nothing keeps the run from the network but pip's own settings" >&2
fi
folder=$(mktemp -d)
trap '[ $? = 0 ] && rm -rf "$folder" || echo "test-archive: see $folder" >&2' EXIT
# Python's unpacker forgets which files are programs: the archive must run even so.
"$python" -m zipfile -e "$archive" "$folder"
if [ -n "$wheels" ]; then
  ln -s "$(realpath "$wheels")" "$folder/wheels"
else
  "$python" -m pip download --quiet --dest "$folder/wheels" \
    --requirement "$folder/code/requirements.lock" --constraint "$folder/code/requirements-cuda.lock"
fi
if [ -d "$mirror" ]; then mirror=$(realpath "$mirror"); else mirror=; fi

# Nothing of the caller's settings reaches the run.
run() {
  local began=$SECONDS
  (cd "$folder" && "${alone[@]}" env --ignore-environment PATH="$PATH" HOME="$folder" LANG=C.UTF-8 PIP_CONFIG_FILE=/dev/null \
    bash reproduce.sh "$@" 2>&1 | tee "$folder/log" | tail -n 4)
  echo "test-archive: reproduce.sh $1: $((SECONDS - began)) s"
}

same_lock() {
  grep -Eq 'compared with the committed lock: [0-9]+ identical, 0 within tolerance, 0 differ' "$folder/log" || fail "not every output is identical"
  git -C "$folder/code" diff --exit-code HEAD || fail "a committed file changed"
}

echo "== the miniature, computed"
run mini
same_lock
"$folder/code/.venv/bin/python" - "$folder" <<'PY'
import filecmp
import sys
from pathlib import Path

folder = Path(sys.argv[1])
files = [path for path in (folder / "runs/mini").rglob("*") if path.is_file()]
other = [path for path in files if not filecmp.cmp(path, folder / "code" / path.relative_to(folder), shallow=False)]
print(f"{len(files)} files of runs/mini, {len(other)} of them other than in the archive", *other, sep="\n  ")
sys.exit(bool(other))
PY

echo "== the miniature, from the finished outputs"
rm -rf "$folder/code/runs" "$folder/code/.dvc/cache"
run mini --pull
same_lock

if [ -n "$mirror" ]; then
  echo "== the audit"
  rm -rf "$folder/code/runs/paper"
  run audit --mirror "$mirror"
  if [ -d "$folder/runs/paper" ]; then diff --recursive --brief "$folder/runs/paper/audit" "$folder/code/runs/paper/audit"; fi
  git -C "$folder/code" diff --exit-code --stat HEAD || fail "a committed file changed"
else
  echo "== no mirror of the public archives (MI_LLM_MIRROR): the audit did not run"
fi
echo "test-archive: everything as committed"
