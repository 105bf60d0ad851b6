# Sourced by run.sh. Finds a Docker engine with Compose and Buildx, or installs Debian's and starts it beside everything else of
# this machine, with its own data, socket and plugins under $WORK. Sets OWN_ENGINE, or says in SKIP why there is none.

SKIP=
OWN_ENGINE=

# Where the machine's apt gets its own distribution from.
mirror_of_apt() {
  apt-get indextargets --format '$(LABEL) $(SITE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk -v name="$(. /etc/os-release && echo "$ID")" 'tolower($1) == name && $3 == "main" {print $2; exit}'
}

find_engine() {
  export DOCKER_CONFIG="$WORK/config"
  mkdir -p "$DOCKER_CONFIG/cli-plugins"
  if docker info >/dev/null 2>&1; then
    unset DOCKER_CONFIG
  elif [ "$(uname -s)" != Linux ] || ! command -v apt-get >/dev/null; then
    SKIP="no Docker engine answers, and only Debian's can be installed here"
  elif [ "$(id -u)" != 0 ]; then
    SKIP="no Docker engine answers, and installing Debian's needs root"
  else
    install_engine && start_engine
  fi
  [ -n "$SKIP" ] && return
  docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 || install_plugins
}

install_engine() {
  command -v dockerd >/dev/null && command -v debootstrap >/dev/null && return
  apt-get update -qq >"$WORK/apt.log" 2>&1 || { SKIP="apt-get update fails ($(tail -1 "$WORK/apt.log"))"; return 1; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends docker.io iptables debootstrap >>"$WORK/apt.log" 2>&1 ||
    { SKIP="docker.io cannot be installed ($(tail -1 "$WORK/apt.log"))"; return 1; }
}

# The socket lies in a folder of its own with a short name: a socket's path has 107 characters at most.
start_engine() {
  SOCKETS=$(mktemp -d /tmp/mi-llm-XXXXXX)
  local driver
  echo '{}' >"$WORK/daemon.json" # not this machine's own settings
  iptables-save >"$WORK/iptables" 2>/dev/null
  [ -e /sys/class/net/docker0 ] || OWN_BRIDGE=docker0
  for driver in overlay2 fuse-overlayfs vfs; do
    dockerd --data-root "$WORK/data" --exec-root "$SOCKETS/run" --pidfile "$SOCKETS/pid" --host "unix://$SOCKETS/socket" \
      --storage-driver "$driver" --config-file "$WORK/daemon.json" >"$WORK/dockerd.log" 2>&1 &
    ENGINE=$!
    export DOCKER_HOST="unix://$SOCKETS/socket"
    local second
    for second in $(seq 60); do
      if docker info >/dev/null 2>&1; then
        OWN_ENGINE=$driver
        return
      fi
      kill -0 "$ENGINE" 2>/dev/null || break
      sleep 1
    done
    stop_engine
  done
  SKIP="the engine does not start ($(grep -E 'fatal|failed to start' "$WORK/dockerd.log" | tail -1))"
  return 1
}

# Ends the engine and puts back what it changed of this machine: firewall rules, its bridge, its mounts.
stop_engine() {
  [ -n "${ENGINE:-}" ] || return 0
  kill "$ENGINE" 2>/dev/null
  wait "$ENGINE" 2>/dev/null
  iptables-restore <"$WORK/iptables" 2>/dev/null
  [ -z "${OWN_BRIDGE:-}" ] || ip link delete "$OWN_BRIDGE" 2>/dev/null
  umount "$WORK/data" 2>/dev/null
  rm -rf "$SOCKETS"
  ENGINE=
}

# Compose and Buildx, from the first of Debian's newer releases that has them, unpacked beside the engine.
install_plugins() {
  local mirror apt="$WORK/plugins" release
  mirror=$(mirror_of_apt)
  for release in "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" trixie sid; do
    rm -rf "$apt" && mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb $mirror $release main" >"$apt/sources.list"
    (
      cd "$apt"
      local options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache")
      apt-get "${options[@]}" update && apt-get "${options[@]}" download docker-buildx docker-compose
    ) >"$WORK/plugins.log" 2>&1 || continue
    for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$apt/root"; done
    find "$apt/root" -path '*cli-plugins/docker-*' -exec cp {} "$DOCKER_CONFIG/cli-plugins/" \;
    docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && return
  done
  SKIP="no Compose and Buildx for this engine ($(tail -1 "$WORK/plugins.log"))"
}
