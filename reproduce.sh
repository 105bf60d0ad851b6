#!/usr/bin/env bash
# Reproduce the study: ./reproduce.sh [auto|mini|audit|paper|FOLDER] [--native|--container] [--mirror DIR] [--pull] [--yes]
#   auto         (default) the paper's study where there is an NVIDIA GPU and a container engine, else the miniature
#   mini         the study in miniature: sample corpora, tiny models, two CPU cores, about ten minutes
#   audit        the paper checked against its released data
#   paper        the study at the paper's scale
#   FOLDER       any folder with a params.yaml and a dvc.yaml, for instance released
#   --native     in a virtual environment, .venv/ (default for all but paper)
#   --container  in the study's container
#   --pull       fetch finished outputs where the remote has them, instead of computing them
#   --mirror DIR take the public corpora from this folder (or set MI_LLM_MIRROR)
#   --yes        do not ask before a long run
set -euo pipefail
cd "$(dirname "$0")"

study=auto place=native options=()
while [ $# -gt 0 ]; do
  word=$1
  shift
  case "$word" in
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --native) place=native ;;
    --container) place=container ;;
    --mirror)
      [ $# -gt 0 ] || { echo "reproduce.sh: --mirror needs a folder" >&2; exit 2; }
      options+=(--mirror "$1")
      shift
      ;;
    --pull | --yes) options+=("$word") ;;
    -*) echo "reproduce.sh: unknown option $word; see ./reproduce.sh --help" >&2; exit 2 ;;
    *) study=$word ;;
  esac
done

if [ "$place" = container ]; then
  echo "reproduce.sh: the study's container is not built yet; run ./reproduce.sh $study --native" >&2
  exit 2
fi

./setup.sh
exec .venv/bin/mi-llm reproduce "$study" ${options[@]+"${options[@]}"}
