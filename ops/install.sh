# Sourced by the scripts beside it: installs what a bare Debian 12 with Rust
# lacks. Does nothing, and needs no rights, where all is there.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

# Packages for whatever of these is missing.
missing_packages() {
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql-15
  command -v psql >/dev/null || echo postgresql-client-15
  command -v cc >/dev/null || echo build-essential
  command -v curl >/dev/null || echo curl
  command -v setpriv >/dev/null || echo util-linux
  # Only benchmarks drive load with it.
  [ -z "${need_wrk:-}" ] || command -v wrk >/dev/null || echo wrk
}

install_missing() {
  local packages
  packages=$(missing_packages | sort -u | tr '\n' ' ')
  [ -z "${packages// /}" ] && return 0
  command -v apt-get >/dev/null ||
    fail "missing: $packages. This is no Debian: install them, and start again."
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null ||
      fail "missing: $packages. As root: apt-get update && apt-get install -y $packages"
    sudo="sudo"
  fi
  echo "· installing $packages"
  # Debian would create and start a server of its own with the package.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    $sudo mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | $sudo tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq ||
    fail "apt-get update failed: is the package server reachable?"
  # shellcheck disable=SC2086
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold $packages >/dev/null ||
    fail "apt-get could not install $packages"
}

build() {
  command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs), and start again"
  cargo build --release --workspace --quiet "$@" || fail "the build failed"
}
