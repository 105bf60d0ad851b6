#!/usr/bin/env bash
# Run the study from this archive: ./reproduce.sh, with the words that code/reproduce.sh takes (mini, audit, --mirror DIR, --pull …).
# First, code/ becomes the git repository that it was, from code.bundle. Package files in a folder wheels/ are checked against
# wheels.sha256 and are then the only place packages come from: so no network is needed. --pull takes the finished outputs in runs/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
words=()
pull=
while [ $# -gt 0 ]; do
  case "$1" in
    --pull) pull=yes words+=("$1") ;;
    --mirror) # a folder named from where the caller stands
      [ $# -gt 1 ] || { echo "reproduce.sh: --mirror needs a folder" >&2; exit 2; }
      [ -d "$2" ] || { echo "reproduce.sh: no folder $2; --mirror needs the one with the public archives" >&2; exit 2; }
      words+=("$1" "$(cd "$2" && pwd)")
      shift
      ;;
    *) words+=("$1") ;;
  esac
  shift
done
cd "$here"

if ! git --git-dir code/.git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
  echo "making code/ a git repository, from code.bundle" >&2
  git init --quiet code
  git -C code symbolic-ref HEAD refs/heads/main
  git -C code fetch --quiet ../code.bundle main
  git -C code reset --quiet --hard FETCH_HEAD
fi
if [ -n "$pull" ]; then
  mkdir -p code/runs
  cp -Rn runs/. code/runs/
fi
if [ -d wheels ]; then
  echo "checking the package files in wheels/" >&2
  sha256sum --check --ignore-missing --quiet wheels.sha256
  export PIP_NO_INDEX=1 PIP_FIND_LINKS="$here/wheels"
fi
exec bash code/reproduce.sh ${words[@]+"${words[@]}"}
