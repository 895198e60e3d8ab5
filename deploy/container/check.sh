#!/usr/bin/env bash
# Containerize the embedded model's bento for real, run the image, and check what it does.
#
#     sudo deploy/container/check.sh [--wheels FOLDER] [--ca FILE] [--keep] [FOLDER]
#
#   --wheels FOLDER   take torch's CPU wheel from here instead of PyTorch's own index
#   --ca FILE         certificates that downloads are checked with (SSL_CERT_FILE), where a proxy
#                     has its own
#   --keep            leave everything in FOLDER for a look
#   FOLDER            where to work, empty (else a new one under TMPDIR); 10 GB, removed at the end
#
# No Docker engine is needed, but root is, and Debian's packages buildah and debootstrap. The base
# image is made on the spot by debootstrap, under the name that the Dockerfile asks for. The packages
# in the image come from the index that uv uses by default; UV_* variables of this shell don't reach it.
# The last line is "ok", with time and size, or the reason why not. docs/guides/container.md has more.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
IMAGE=localhost/sdxl-bento:check
CANARY="hf_canary$RANDOM$RANDOM$RANDOM" # stands for a token of the builder's

say() { printf "==> %3d s  %s\n" "$SECONDS" "$*"; }
fail() { echo "check.sh: $*" >&2 && exit 1; }

read_arguments() {
  wheels="" ca=${SSL_CERT_FILE:-} keep="" work=""
  while (($#)); do
    case $1 in
      --wheels) wheels=$(realpath "${2:?--wheels needs a folder}") && shift 2 ;;
      --ca) ca=${2:?--ca needs a file} && shift 2 ;;
      --keep) keep=yes && shift ;;
      -h | --help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//p}' deploy/container/check.sh && exit ;;
      -*) fail "there is no option $1; --help lists them" ;;
      *) work=$1 && shift ;;
    esac
  done
  ((EUID == 0)) || fail "building an image without an engine needs root: try sudo $0"
  for tool in buildah debootstrap unshare nsenter ip; do
    command -v $tool >/dev/null || fail "$tool is missing: apt-get install buildah debootstrap iproute2"
  done
  [[ -x $PYTHON ]] || fail "there is no $PYTHON: run make lint first, which makes it, or set PYTHON"
  [[ -z $wheels || -n $(compgen -G "$wheels/torch-*.whl") ]] || fail "no torch wheel in $wheels"
  if [[ -n $work ]]; then mkdir -p "$work" && work=$(realpath "$work"); else work=$(mktemp -d); fi
  [[ -z $(ls -A "$work") ]] || fail "$work is not empty"
}

# All that buildah and BentoML write goes below $work.
use_own_storage() {
  mkdir "$work"/{tmp,home}
  cat >"$work/storage.conf" <<EOF
[storage]
driver = "vfs"
graphroot = "$work/storage"
runroot = "$work/run"
EOF
  export CONTAINERS_STORAGE_CONF=$work/storage.conf STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
  export TMPDIR=$work/tmp BENTOML_HOME=$work/home BENTOML_DO_NOT_TRACK=True
}

clean_up() {
  [[ -z ${server:-} ]] || kill -KILL "$server" 2>/dev/null || true
  [[ -z ${work:-} ]] || buildah umount --all >/dev/null 2>&1 || true
  if [[ -n $keep ]]; then say "Kept in $work"; else rm -rf "$work"; fi
}

build_bento() {
  say "Packing the embedded model"
  "$PYTHON" -m export embedded --brief >"$work/export.log" 2>&1 || { cat "$work/export.log" && exit 1; }
  "$PYTHON" -m bentoml build --version check --output tag
}

# python:3.11-slim, as far as the Dockerfile can tell: Debian with that Python, and uv.
make_base_image() {
  local version suite root container
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  case $version in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    *) fail "no Debian release has Python $version; make the environment with 3.11 or 3.13" ;;
  esac
  say "Making a base image of Debian $suite"
  container=$(buildah from scratch)
  root=$(buildah mount "$container")
  debootstrap --variant=minbase --include=python3,ca-certificates "$suite" "$root" >"$work/debootstrap.log" ||
    { tail "$work/debootstrap.log" && exit 1; }
  # As Docker's own images of Debian do: no packages stay behind.
  echo 'DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb";};' >"$root/etc/apt/apt.conf.d/clean"
  chroot "$root" apt-get clean
  cp "$("$PYTHON" -c 'import uv; print(uv.find_uv_bin())')" "$root/usr/local/bin/uv"
  configure_uv_in "$root"
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit --quiet --rm "$container" "localhost/python:$version-slim"
}

# The bento tells uv to take torch from PyTorch's index, whatever else it is told. With --wheels it
# is not to, so uv gets a script in front of it.
configure_uv_in() {
  local uv=$1/usr/local/bin/uv
  mv "$uv" "$1/usr/local/lib/uv"
  {
    echo '#!/bin/sh'
    [[ -z $wheels ]] || echo 'unset UV_TORCH_BACKEND; export UV_FIND_LINKS=/wheels'
    [[ -z $ca ]] || echo 'export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
    # shellcheck disable=SC2016
    echo 'exec /usr/local/lib/uv "$@"'
  } >"$uv"
  chmod +x "$uv"
  [[ -z $ca ]] || cp "$ca" "$1/etc/ssl/certs/ca-certificates.crt"
}

containerize() {
  say "Containerizing; the packages are the longest part"
  local options=(--backend buildah --image-tag "$IMAGE")
  [[ -z $wheels ]] || options+=(--opt "volume=$wheels:/wheels:ro")
  HF_TOKEN=$CANARY "$PYTHON" -m bentoml containerize sdxl-bento:check "${options[@]}" \
    >"$work/containerize.log" 2>&1 || { tail -n 40 "$work/containerize.log" && exit 1; }
  buildah inspect --type image "$IMAGE" >"$work/image.json"
}

field() { # of the image's configuration, by a path in JSON; one line an item
  "$PYTHON" - "$work/image.json" "$1" <<'EOF'
import json, sys
value = json.load(open(sys.argv[1]))["OCIv1"]["config"]
value = value.get(sys.argv[2]) or []
print(*([value] if isinstance(value, str) else value), sep="\n")
EOF
}

check_secrets() {
  say "Looking for secrets in environment, history and layers"
  ! field Env | grep -iE '^[^=]*(TOKEN|SECRET|PASSWORD|CREDENTIAL)[^=]*=' || fail "a secret in ENV"
  buildah push --quiet "$IMAGE" "oci:$work/oci:check"
  # Everything as one stream: layers without compression, configuration, history.
  gzip --decompress --stdout --force "$work"/oci/blobs/sha256/* >"$work/layers"
  grep -qaF "class SDXLService" "$work/layers" || fail "the search does not find what is there"
  ! grep -qaF "$CANARY" "$work/layers" || fail "the builder's HF_TOKEN is in the image"
  ! find "$root"/{root,home,app} -name .netrc -o -name .git-credentials -o -name .env \
    -o -path '*/.ssh/*' | grep . || fail "a file with credentials is in the image"
  size=$(du --summarize --block-size=MB "$work/oci" | cut -f1)
  unpacked=$(du --block-size=MB "$work/layers" | cut -f1)
}

# As an engine would: PID 1 of its own namespaces, the image's user, environment and entry point, and
# a network of which only the loopback device exists.
start() {
  say "Starting the image's entry point"
  local user environment entrypoint workdir
  user=$(field User) workdir=$(field WorkingDir)
  mapfile -t environment < <(field Env)
  mapfile -t entrypoint < <(field Entrypoint)
  [[ -n $user && $user != root && $user != 0 ]] || fail "the image runs as root"
  echo "127.0.0.1 localhost" >"$root/etc/hosts" # engines bring this file along
  # shellcheck disable=SC2016  # the arguments are expanded by the inner shell
  unshare --pid --fork --mount --net --ipc --uts --propagation private sh -c '
    mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && ip link set lo up
    root=$1 user=$2; shift 2
    exec chroot --userspec="$user:$user" --groups= "$root" /usr/bin/env -i "$@"
  ' sh "$root" "$user" --chdir="$workdir" "${environment[@]}" "${entrypoint[@]}" \
    >"$work/server.log" 2>&1 &
  unshared=$!
  until server=$(cat "/proc/$unshared/task/$unshared/children") && server=${server% } && [[ -n $server ]]; do
    kill -0 $unshared 2>/dev/null || fail "the entry point did not start: $(cat "$work/server.log")"
    sleep 0.1
  done
}

check_service() {
  say "Asking it for pictures"
  # 127.0.0.2, since only what listens on all interfaces can be published by an engine.
  nsenter --net --target "$server" "$PYTHON" deploy/container/probe.py http://127.0.0.2:3000 ||
    fail "the service did not do what it should: $(tail -n 40 "$work/server.log")"
  local uids
  uids=$(pgrep --ns "$server" --nslist pid | while read -r pid; do
    awk '/^Uid:/ {print $2, $3, $4, $5}' "/proc/$pid/status"
  done | sort -u)
  [[ $uids != *" 0"* && $uids != "0 "* ]] || fail "a process in the container runs as root: $uids"
  echo "every process has the uid ${uids%% *}"
}

check_end() {
  say "Sending SIGTERM"
  local status=0
  kill -TERM "$server"
  timeout 60 tail --pid="$unshared" -f /dev/null || fail "it runs on 60 s after SIGTERM"
  wait "$unshared" || status=$?
  server=""
  ((status == 0)) || fail "it ended with $status after SIGTERM: $(tail -n 40 "$work/server.log")"
  ! grep -F Traceback "$work/server.log" || fail "it ended with an error: see above"
}

read_arguments "$@"
trap clean_up EXIT
use_own_storage
build_bento
make_base_image
start=$SECONDS
containerize
built=$((SECONDS - start))
root=$(buildah mount "$(buildah from --pull-never "$IMAGE")")
check_secrets
start
check_service
check_end
echo "ok: containerized in $built s, image of $size compressed, $unpacked on disk"
