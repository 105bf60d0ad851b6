#!/usr/bin/env bash
# Reproduce the study: ./reproduce.sh [auto|mini|audit|paper|FOLDER] [--native|--container] [--mirror DIR] [--pull] [--yes]
#   auto         (default) the paper's study if containers can use an NVIDIA GPU here, else the miniature
#   mini         the study in miniature: sample corpora, tiny models, two CPU cores, about ten minutes
#   audit        the paper checked against its released data
#   paper        the study at the paper's scale
#   FOLDER       any folder with params.yaml, publish.yaml and dvc.yaml, for instance released
#   --native     in a virtual environment, .venv/ (default, except for the paper's models if a container can use the GPU)
#   --container  in the study's container (Docker with Compose; docs/containers.md)
#   --pull       fetch finished outputs that the remote has, instead of computing them
#   --mirror DIR read the public corpora from this folder (or set MI_LLM_MIRROR)
#   --yes        do not ask before a long run
set -euo pipefail
cd "$(dirname "$0")"

study=auto place= mirror= options=()
while [ $# -gt 0 ]; do
  word=$1
  shift
  case "$word" in
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --native) place=native ;;
    --container) place=container ;;
    --mirror)
      [ $# -gt 0 ] || { echo "reproduce.sh: --mirror needs a folder" >&2; exit 2; }
      mirror=$1
      shift
      ;;
    --pull | --yes) options+=("$word") ;;
    -*) echo "reproduce.sh: unknown option $word; see ./reproduce.sh --help" >&2; exit 2 ;;
    *) study=$word ;;
  esac
done

# What keeps the study's container from running here; nothing if it can run.
no_container() {
  if ! command -v docker >/dev/null; then
    echo "no command docker; install Docker Engine"
  elif ! docker info >/dev/null 2>&1; then
    echo "no Docker engine responds; start it, or check your permissions (docker info says why)"
  elif ! docker compose version >/dev/null 2>&1; then
    echo "docker has no command compose; install Docker's Compose plugin"
  fi
}

# Whether there is an NVIDIA GPU that containers can be given: through the runtime of NVIDIA's toolkit, or as a CDI device, which
# engines before 28.2 do not list: then a specification of it lies in one of their folders. Sets how Compose has to ask for CDI.
gpu_for_containers() {
  nvidia-smi --list-gpus >/dev/null 2>&1 || return 1
  local folder
  docker info --format '{{range $name, $_ := .Runtimes}}{{println $name}}{{end}}' 2>/dev/null | grep -x nvidia >/dev/null && return
  {
    docker info --format '{{range .DiscoveredDevices}}{{println .ID}}{{end}}'
    docker info --format '{{range .CDISpecDirs}}{{println .}}{{end}}' |
      while read -r folder; do cat "$folder"/*.yaml "$folder"/*.json; done
    true
  } 2>/dev/null | grep nvidia.com/gpu >/dev/null || return 1
  export MI_LLM_GPU_DRIVER="${MI_LLM_GPU_DRIVER:-cdi}" MI_LLM_GPUS="${MI_LLM_GPUS:-nvidia.com/gpu=all}"
}

# Whether a study needs the GPU: one with a model of the hub does.
needs_gpu() {
  local hub='^[^#]*\bhub: *[^ ]'
  case "$1" in
    paper) grep -Eq "$hub" params.yaml ;;
    audit) false ;;
    *) [ -f "$1/params.yaml" ] && grep -Eq "$hub" "$1/params.yaml" ;;
  esac
}

if [ "$study" = auto ] && [ "$place" != native ]; then
  study=mini
  if [ -z "$(no_container)" ] && gpu_for_containers; then study=paper; fi
  echo "chosen for this machine: $study" >&2
fi
if [ -z "$place" ]; then
  place=native
  if needs_gpu "$study" && [ -z "$(no_container)" ] && gpu_for_containers; then place=container; fi
fi

if [ "$place" = native ]; then
  if [ -n "$mirror" ]; then options+=(--mirror "$mirror"); fi
  ./setup.sh
  exec .venv/bin/mi-llm reproduce "$study" ${options[@]+"${options[@]}"}
fi

missing=$(no_container)
if [ -n "$missing" ]; then
  echo "reproduce.sh: $missing" >&2
  echo "  what to do: that, or run ./reproduce.sh $study --native, which needs no container" >&2
  exit 2
fi
files=(--file docker-compose.yml)
if needs_gpu "$study"; then
  if ! gpu_for_containers; then
    echo "reproduce.sh: study $study needs an NVIDIA GPU that containers can use; nvidia-smi or Docker finds none" >&2
    echo "  what to do: install NVIDIA's driver and container toolkit, then restart Docker; or run ./reproduce.sh mini --container" >&2
    exit 2
  fi
  files+=(--file docker-compose.gpu.yml)
fi
if [ -n "$mirror" ]; then
  [ -d "$mirror" ] || { echo "reproduce.sh: no folder $mirror; --mirror needs the one with the public archives" >&2; exit 2; }
  MI_LLM_MIRROR=$(cd "$mirror" && pwd)
  export MI_LLM_MIRROR
fi
# Files that the run writes belong to whom this folder belongs; a rootless engine's root is the person who started it.
owner=$(ls -nd . | awk '{print $3 ":" $4}')
if docker info --format '{{json .SecurityOptions}}' | grep -q rootless; then owner=0:0; fi
export MI_LLM_UID="${owner%:*}" MI_LLM_GID="${owner#*:}"
MI_LLM_REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
export MI_LLM_REVISION
# A container outlives a client that was killed, and two runs at once would undo each other's outputs.
for other in $(docker ps --quiet --filter label=com.docker.compose.service=study --filter "volume=$PWD"); do
  echo "another run works in this folder (container $other); waiting for it to end" >&2
  docker wait "$other" >/dev/null
done
mkdir -p .dvc/cache
if [ "$(id -u)" = 0 ] && [ "$owner" != 0:0 ]; then chown "$owner" .dvc/cache; fi # sudo, in somebody's folder
docker compose "${files[@]}" build study
exec docker compose "${files[@]}" run --rm study reproduce "$study" ${options[@]+"${options[@]}"}
