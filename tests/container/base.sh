# Sourced by run.sh. Where no registry can be reached, makes what the Dockerfile's FROM lines name: a plain base of this machine's own
# distribution by debootstrap, and nginx on top of it. They carry this machine's certificates, and its apt and pip settings where a
# build needs them; the Dockerfile is used as it is.

# Sets the variables of docker-compose.yml that say which base images to use.
choose_bases() {
  if docker pull --quiet "$(default_of MI_LLM_BASE_IMAGE)" >"$WORK/pull.log" 2>&1; then
    BASE_WORDS="the pinned images"
    return
  fi
  if [ -z "$OWN_ENGINE" ]; then
    SKIP="no registry can be reached ($(tail -1 "$WORK/pull.log")), and an image of this name must not be faked in your engine"
    return
  fi
  # The names without the digests, which only the pinned images have.
  MI_LLM_BASE_IMAGE=$(default_of MI_LLM_BASE_IMAGE)
  MI_LLM_STORE_IMAGE=$(default_of MI_LLM_STORE_IMAGE)
  export MI_LLM_BASE_IMAGE="${MI_LLM_BASE_IMAGE%@*}" MI_LLM_STORE_IMAGE="${MI_LLM_STORE_IMAGE%@*}" MI_LLM_BUILD_NETWORK=host
  BASE_WORDS="$(. /etc/os-release && echo "$PRETTY_NAME") by debootstrap, in place of the pinned images (no registry can be reached)"
  docker image inspect "$MI_LLM_BASE_IMAGE" "$MI_LLM_STORE_IMAGE" >/dev/null 2>&1 || make_bases
  write_pip_settings
}

# The value that docker-compose.yml gives a variable by default.
default_of() { sed -n "s/.*\${$1:-\([^}]*\)}.*/\1/p" docker-compose.yml | head -1; }

make_bases() {
  local root="$WORK/base" codename
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  rm -rf "$root"
  debootstrap --variant=minbase "$codename" "$root" "$(mirror_of_apt)" >"$WORK/debootstrap.log" 2>&1
  apt-get indextargets --format '$(LABEL) deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    grep -iE '^(debian|ubuntu)' | sed 's/^.* deb /deb /' | sort -u >"$root/etc/apt/sources.list"
  apt-config dump | grep -E '^Acquire::https?::' >"$root/etc/apt/apt.conf.d/90machine" || true
  mkdir -p "$root/usr/local/share/ca-certificates"
  cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
  chroot "$root" useradd --create-home --uid 1000 ubuntu # as in Ubuntu 24.04's image
  rm -rf "$root"/var/cache/apt/archives/*.deb
  tar --create --numeric-owner --directory "$root" . | docker import - "$MI_LLM_BASE_IMAGE" >/dev/null
  docker build --quiet --network host --tag "$MI_LLM_STORE_IMAGE" - >/dev/null <<EOT
FROM $MI_LLM_BASE_IMAGE
RUN apt-get update && apt-get install -y --no-install-recommends nginx wget
EOT
}

# A pip configuration with this machine's indexes; folders of wheels are served to the build over the loopback interface.
write_pip_settings() {
  local folder port
  folder=$(python3 -m pip config list | sed -n "s/.*find-links='\(.*\)'/\1/p" | tr ' ' '\n' | grep '^/' | sort -u | head -1) || true
  {
    echo "[global]"
    echo "# $MARK"
    echo "timeout = 180"
    echo "cert = /etc/ssl/certs/ca-certificates.crt"
    python3 -m pip config list | sed -n "s/^.*\.index-url='\(.*\)'/index-url = \1/p" | tail -1
    if [ -n "$folder" ]; then
      python3 -u -m http.server --bind 127.0.0.1 --directory "$folder" 0 >"$WORK/wheels.log" 2>&1 &
      WHEELS=$!
      until port=$(grep -oE 'port [0-9]+' "$WORK/wheels.log" | cut -d' ' -f2) && [ -n "$port" ]; do sleep 0.1; done
      echo "find-links = http://127.0.0.1:$port/"
    fi
  } >"$WORK/pip.conf"
  export MI_LLM_PIP_CONF="$WORK/pip.conf"
}
