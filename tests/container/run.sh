#!/usr/bin/env bash
# `make test-container`: builds the images, runs the miniature in one and compares its lock with the committed one, starts the services,
# talks to them and stops them. Needs a Docker engine, or Debian, root and a package mirror to make one; says why where it has neither.
#   tests/container/run.sh [FOLDER]   keep engine, images and the run in FOLDER and use them again; without it nothing is left behind
set -uo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
WORK=${1:-$(mktemp -d /var/tmp/mi-llm-XXXXXX)}
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
MARK="secret-$$-$RANDOM" # stands in a build secret; no layer may hold it
OWNER=4321               # a user that neither this machine nor the images know
PROJECT=milt
export COMPOSE_PROJECT_NAME=$PROJECT COMPOSE_PROGRESS=plain BUILDKIT_PROGRESS=plain MI_LLM_TAG=test
PASSED=0 FAILED=0
. tests/container/engine.sh
. tests/container/base.sh

say() { printf '%s\n' "$*"; }

# check WORDS COMMAND…: runs the command, counts, and shows the end of what it said if it failed.
check() {
  local words=$1 started=$SECONDS
  shift
  if "$@" >"$WORK/last.log" 2>&1; then
    PASSED=$((PASSED + 1))
    say "ok      $words ($((SECONDS - started)) s)"
  else
    FAILED=$((FAILED + 1))
    say "FAILED  $words ($((SECONDS - started)) s)"
    tail -40 "$WORK/last.log" | sed 's/^/        /'
  fi
}

end() {
  if [ -d "$WORK/clone" ]; then
    compose --profile '*' down --volumes --timeout 5 >/dev/null 2>&1
  fi
  [ -z "${WHEELS:-}" ] || kill "$WHEELS" 2>/dev/null
  stop_engine
  [ -n "$KEEP" ] || rm -rf "$WORK"
}

KEEP=${1:-}
trap end EXIT
trap 'exit 130' INT TERM

compose() { (cd "$WORK/clone" && docker compose "$@"); }
in_study() { compose run --rm --no-TTY --entrypoint tini study -- "$@"; }
size_of() { docker image inspect --format '{{.Size}}' "$1" | awk '{printf "%.2f GB", $1 / 1e9}'; }

# ---- the repository as it is here, at another place and another user's

clone() {
  rm -rf "$WORK/clone"
  git clone --quiet --no-local "$ROOT" "$WORK/clone"
  git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - --ignore-failed-read 2>/dev/null |
    tar --extract --directory "$WORK/clone"
  if [ "$(id -u)" = 0 ]; then chown -R "$OWNER:$OWNER" "$WORK/clone"; else OWNER=$(id -u); fi
  export MI_LLM_UID=$OWNER MI_LLM_GID=$OWNER
}

# ---- images

build() { compose build "$1"; }

images_run_as_nobody_special() {
  local image
  for image in "mi-llm-study:$MI_LLM_TAG" "mi-llm-web:$MI_LLM_TAG" mi-llm-store; do
    [ "$(docker image inspect --format '{{.Config.User}}' "$image")" = 1000:1000 ] || return 1
  done
}

images_hold_no_secret() {
  local image
  for image in "mi-llm-study:$MI_LLM_TAG" "mi-llm-web:$MI_LLM_TAG"; do
    docker history --no-trunc "$image" | grep -q "$MARK" && return 1
    docker save "$image" | grep -qa "$MARK" && return 1
  done
  true
}

images_hold_no_data() {
  docker run --rm --entrypoint sh "mi-llm-web:$MI_LLM_TAG" -c 'ls -A /study | grep . && exit 1; ! find / -xdev -name "*.jsonl" -path "*cassette*" | grep .'
}

# The packages are a layer whose bytes depend on base and lock file alone: made anew, it is the same layer.
layers_are_reproducible() {
  local once again
  once=$(runtime) && again=$(runtime --no-cache-filter packages) || return 1
  diff <(layers "$once") <(layers "$again")
}

# The stage that both images of ours are made from; prints its number.
runtime() {
  docker buildx build --quiet --target runtime --network "${MI_LLM_BUILD_NETWORK:-default}" \
    --build-arg BASE_IMAGE="${MI_LLM_BASE_IMAGE:-$(default_of MI_LLM_BASE_IMAGE)}" --build-arg PIP_EXTRA_INDEX_URL= --build-arg SOURCE_DATE_EPOCH=0 \
    --secret "id=pip,src=${MI_LLM_PIP_CONF:-/dev/null}" "$@" "$WORK/clone"
}

layers() { docker image inspect --format '{{json .RootFS.Layers}}' "$1" | tr ',' '\n'; }

# ---- the study

miniature() {
  (cd "$WORK/clone" && ./reproduce.sh mini --container --yes) >"$WORK/mini.log" 2>&1
  local status=$?
  cat "$WORK/mini.log"
  return $status
}

nothing_left_to_do() {
  (cd "$WORK/clone" && ./reproduce.sh mini --container --yes) >"$WORK/again.log" 2>&1
  cat "$WORK/again.log"
  ! grep -q '^Running stage' "$WORK/again.log"
}

results_belong_to_the_owner() {
  ! find "$WORK/clone/runs" "$WORK/clone/.dvc" ! -uid "$OWNER" | grep .
}

# Rounding aside, two processes train what one does: the loss they end with is the same to four digits.
two_processes_train_what_one_does() {
  local numbers="$WORK/clone/runs/mini/finetune/tiny-llama3/metrics.json" one two
  one=$(cat "$numbers")
  in_study torchrun --standalone --nproc_per_node 2 -m mi_llm finetune tiny-llama3 --study mini/params.yaml || return 1
  two=$(cat "$numbers")
  python3 - "$one" "$two" <<'EOT'
import json, sys
one, two = (json.loads(text) for text in sys.argv[1:])
print(one, two, sep="\n")
losses = [(one[name], two[name]) for name in one if "loss" in name]
assert losses and all(abs(a - b) < 1e-4 * abs(a) for a, b in losses)
EOT
}

signals_reach_the_study() {
  docker run --detach --name "$PROJECT-signal" --entrypoint tini "mi-llm-study:$MI_LLM_TAG" -- python -c 'import time; time.sleep(600)' || return 1
  local started=$SECONDS
  docker stop --time 20 "$PROJECT-signal"
  local code
  code=$(docker inspect --format '{{.State.ExitCode}}' "$PROJECT-signal")
  docker rm "$PROJECT-signal"
  [ "$code" = 143 ] && [ $((SECONDS - started)) -lt 10 ]
}

# A run that dies with its container leaves DVC's locks behind, naming processes whose numbers the next container uses again.
# Killed after the first saved state (save_every is 20 steps).
run_is_killed() {
  (cd "$WORK/clone" && exec ./reproduce.sh mini --container --yes) >"$WORK/killed.log" 2>&1 &
  local run=$!
  until grep -q 'finetune .* 2[1-9]/' "$WORK/killed.log"; do
    kill -0 "$run" || { cat "$WORK/killed.log"; return 1; }
    sleep 1
  done
  docker ps --quiet --filter label=com.docker.compose.service=study | xargs docker kill
  ! wait "$run"
}

# ---- the services

start() { compose up --detach --wait --wait-timeout 240 "$1"; }

reply() {
  curl --silent --show-error --fail --max-time 120 --header 'Content-Type: application/json' \
    --data '{"model": "'"$1"'", "max_tokens": 16, "messages": [{"role": "user", "content": "我最近总是失眠，很累。"}]}' \
    http://127.0.0.1:8000/v1/chat/completions | python3 -c 'import json, sys; text = json.load(sys.stdin)["choices"][0]["message"]["content"]; print(text); assert text'
}

models_answer() { reply tiny-glm4 && reply tiny-glm4+mi; }

# One talk, as the chat's page leads it: base beside tuned, two replies.
chat_talks() {
  local jar="$WORK/cookies" talk
  ask() { curl --silent --show-error --fail --max-time 120 --cookie "$jar" --cookie-jar "$jar" --header 'Origin: http://127.0.0.1:8080' --header 'Content-Type: application/json' "$@"; }
  rm -f "$jar"
  ask http://127.0.0.1:8080/ | grep -i '<html' || return 1
  talk=$(ask --data '{"model": "tiny-glm4", "way": "beside"}' http://127.0.0.1:8080/talks | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])') || return 1
  ask --data '{"text": "我最近总是失眠，很累。"}' "http://127.0.0.1:8080/talks/$talk/messages" || return 1
  ask "http://127.0.0.1:8080/talks/$talk" | tee /dev/stderr | python3 -c '
import json, sys
said = json.load(sys.stdin)["rounds"][0]
assert len(said["replies"]) == 2 and all(reply["text"] for reply in said["replies"])'
}

# Without a link there is no page; with the coordinator's, of which the log has one, there is.
desk_opens_by_link() {
  local link
  [ "$(curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:8808/)" = 404 ] || return 1
  link=$(compose logs desk | grep -o 'http://127.0.0.1:8808/in/[A-Za-z0-9_-]*' | tail -1)
  curl --silent --show-error --fail --location --cookie-jar "$WORK/cookies" --cookie "$WORK/cookies" "$link" | grep -i '<html'
}

services_are_guarded() {
  local container
  for container in $(compose ps --quiet); do
    docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}} {{.Config.User}}' "$container" |
      grep -E "^true \[ALL\] \[no-new-privileges:true\] [1-9][0-9]* $OWNER:$OWNER$" || return 1
  done
  ! docker ps --format '{{.Ports}}' | tr ',' '\n' | grep -- '->' | grep -v '127\.0\.0\.1:'
}

store_users() {
  printf 'lab:%s\n' "$(openssl passwd -6 store-password)" >"$WORK/clone/store-users"
  chown "$OWNER" "$WORK/clone/store-users" 2>/dev/null
  chmod 600 "$WORK/clone/store-users"
}

# A clone without data gets it from the store, where another one put it.
store_keeps_what_dvc_pushes() {
  in_study sh -euc '
    dvc remote add --local --force lab http://store:8900
    dvc remote modify --local lab method PUT
    dvc remote modify --local lab auth basic
    dvc remote modify --local lab user lab
    dvc remote modify --local lab password store-password
    dvc push --remote lab data.dvc
    rm -rf data .dvc/cache/files
    dvc pull --remote lab data.dvc
    test -d data/cassettes'
}

# status METHOD CODE [curl options]
status() {
  local method=$1 wanted=$2 got
  shift 2
  got=$(curl --silent --output /dev/null --write-out '%{http_code}' --request "$method" "$@" http://127.0.0.1:8900/files/md5/x)
  echo "$method $*: $got"
  [ "$got" = "$wanted" ]
}

store_refuses_the_rest() {
  status GET 401 && status PUT 401 --data x && status GET 404 --user lab:store-password &&
    status DELETE 403 --user lab:store-password && status MOVE 403 --user lab:store-password
}

stop() { compose --profile '*' down --volumes --timeout 20; }

# ---- in this order

find_engine
if [ -z "$SKIP" ]; then choose_bases; fi
if [ -n "$SKIP" ]; then
  say "skipped: $SKIP"
  say "0 passed, 0 failed, 1 skipped"
  exit 0
fi
say "engine  Docker $(docker version --format '{{.Server.Version}}')${OWN_ENGINE:+, started here ($OWN_ENGINE)}; Compose $(docker compose version --short); $(docker buildx version | cut -d' ' -f2)"
say "base    $BASE_WORDS"
clone

check "the compose files are valid" compose --profile '*' config --quiet
check "with the GPU's added too" compose --file docker-compose.yml --file docker-compose.gpu.yml --profile '*' config --quiet
check "image study builds" build study
check "image web builds" build model
check "image store builds" build store
say "sizes   study $(size_of "mi-llm-study:$MI_LLM_TAG"), web $(size_of "mi-llm-web:$MI_LLM_TAG"), store $(size_of mi-llm-store), base $(size_of "${MI_LLM_BASE_IMAGE:-$(default_of MI_LLM_BASE_IMAGE)}")"
check "images run as a user without rights" images_run_as_nobody_special
check "images hold no build secret" images_hold_no_secret
check "images hold neither data nor results" images_hold_no_data
check "signals reach what runs" signals_reach_the_study
check "a run in the middle of fine-tuning is killed with its container" run_is_killed
check "the miniature goes on from there, in another container" miniature
grep -E '^(  within tolerance|  differs|compared with)' "$WORK/mini.log" | sed 's/^/        /'
check "a second run has nothing to do" nothing_left_to_do
check "what a run writes belongs to the folder's owner" results_belong_to_the_owner
check "torchrun: two processes train what one does" two_processes_train_what_one_does
check "chat comes up healthy, and the models before it" start chat
check "base and tuned model answer" models_answer
check "the chat talks" chat_talks
check "the desk comes up healthy" start desk
check "the desk opens by its links only" desk_opens_by_link
store_users
check "the store comes up healthy" start store
check "the store keeps what dvc pushes" store_keeps_what_dvc_pushes
check "the store refuses what it should" store_refuses_the_rest
check "services are guarded, and on the loopback interface only" services_are_guarded
check "everything stops" stop
check "the packages built anew are the same layer, byte for byte" layers_are_reproducible

say "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
