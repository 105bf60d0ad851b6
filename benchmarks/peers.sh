#!/usr/bin/env bash
# Make .peers/llamafactory/: LLaMA-Factory in an environment of its own, for the benchmarks and the references of
# tests/references/llamafactory/. It does nothing when done; to make it anew, remove the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted="llamafactory==0.9.5 torch==2.13.0 jieba==0.42.1 nltk==3.10.4 rouge-chinese==1.0.3"  # the last three: for its scores
place=.peers/llamafactory
[ "$(cat "$place/installed" 2>/dev/null)" = "$wanted" ] && exit 0

for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
  [ -n "$python" ] && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  python=
done
if [ -z "$python" ]; then
  echo "peers.sh: no Python 3.11 or newer with the venv module was found; name it: PYTHON=/path/to/python benchmarks/peers.sh" >&2
  exit 2
fi

echo "Installing LLaMA-Factory into $place/ (several gigabytes, once) ..." >&2
[ -x "$place/bin/python" ] || "$python" -m venv "$place"
pip() { "$place/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet torch==2.13.0
# shellcheck disable=SC2086
pip install --quiet $wanted
# Their builds do not fit this torch and break LLaMA-Factory's imports; it needs neither for text, but does import torchaudio.
pip uninstall --quiet --yes torchvision torchaudio
site=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/torchaudio"
: > "$site/torchaudio/__init__.py"

"$place/bin/python" -c 'import jieba, nltk, rouge_chinese, llamafactory.train.tuner'
printf '%s\n' "$wanted" > "$place/installed"
