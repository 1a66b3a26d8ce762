# Shared by deploy/quickstart and deploy/test: install what is missing, and say what is done.
# To be sourced. Bare Debian 12 and 13 are tried; Ubuntu 24.04 has packages of the same names; elsewhere the missing
# ones are named.

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' YELLOW=$'\e[33m' DIM=$'\e[2m' RESET=$'\e[0m'
else
  BOLD='' GREEN='' RED='' YELLOW='' DIM='' RESET=''
fi

say()  { printf '%s\n' "${BOLD}$*${RESET}"; }
note() { printf '%s\n' "${YELLOW}$*${RESET}"; }
die()  { printf '%s\n' "${RED}$*${RESET}" >&2; exit 1; }

# step TEXT COMMAND...: run quietly; its output is shown only if it fails.
step() {
  local text=$1 log start=$SECONDS status=0
  shift
  log=$(mktemp)
  [[ -t 1 ]] && printf '%s\r' "${DIM}… ${text}${RESET}"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status)); then
    printf '%s\n' "${RED}✗ ${text} (exit ${status})${RESET}" >&2
    tail -n 40 "$log" >&2
    rm -f "$log"
    return "$status"
  fi
  rm -f "$log"
  printf '%s\n' "${GREEN}✓${RESET} ${text} ${DIM}$((SECONDS - start)) s${RESET}"
}

as_root() {
  if ((EUID == 0)); then
    DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

# may_install NAME...: make sure that we are root, or that sudo lets us be; else say who could help.
may_install() {
  local why="there is no sudo here"
  ((EUID)) || return 0
  if command -v sudo >/dev/null; then
    say "sudo is asked for, to install: $*"
    sudo -v && return 0
    why="sudo did not let $(id -un)"
  fi
  die "these packages are missing, and ${why}: let somebody who may install them run

  apt-get update && apt-get install -y --no-install-recommends $*

as root, then run this again: the rest needs no root"
}

# The name of a Python that is new enough, or nothing.
find_python() {
  local each
  for each in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [[ -n $each ]] && "$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
      echo "$each"
      return
    fi
  done
}

# install_packages NAME...: by apt, those that are missing.
install_packages() {
  local missing=() each
  if ! command -v dpkg-query >/dev/null; then
    note "This is neither Debian nor Ubuntu: these packages (by their Debian names) are taken as given: $*"
    return
  fi
  for each in "$@"; do
    [[ $(dpkg-query -W -f '${Status}' "$each" 2>/dev/null) == 'install ok installed' ]] || missing+=("$each")
  done
  ((${#missing[@]})) || return 0
  may_install "${missing[@]}"
  step "package lists" as_root apt-get update -q
  step "packages: ${missing[*]}" as_root apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# prepare EXTRAS: system packages, the virtual environment, and hillfire in it with EXTRAS.
# Sets VENV. A second call with nothing changed takes no time.
prepare() {
  local extras=$1 stamp wanted python
  VENV=${HILLFIRE_VENV:-$PWD/.venv}
  install_packages python3 python3-venv python3-dev gcc pkg-config fuse3 libfuse3-dev ca-certificates
  python=$(find_python)
  [[ -n $python ]] || die "hillfire needs Python 3.11 or newer; python3 here is $(python3 --version 2>&1)"
  if ! "$VENV/bin/python" -c '' 2>/dev/null || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    step "virtual environment in ${VENV#"$PWD"/} ($("$python" --version))" "$python" -m venv --clear "$VENV"
  fi
  stamp=$VENV/.hillfire-installed
  wanted="$extras $PWD $(sha256sum <pyproject.toml)"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    step "hillfire and what it needs ($extras)" "$VENV/bin/python" -m pip install -q --disable-pip-version-check -e ".[$extras]"
    echo "$wanted" >>"$stamp"
  fi
}

# prepare_rdma: what boots the virtual machine with RDMA devices (tests/rdma/machine.py): QEMU, a kernel and an initial
# file system, kept in ~/.cache/hillfire/rdma-vm or HILLFIRE_RDMA_VM, and Debian's pyverbs in the virtual environment
# (PyPI's wants the same version of rdma-core on the system). Fails, saying why, where it cannot be had.
prepare_rdma() {
  command -v apt-get >/dev/null || { note "The guest's kernel comes from Debian's packages; there is no apt-get here."; return 1; }
  install_packages qemu-system-x86 iproute2 libibverbs1 ibverbs-providers librdmacm1
  if ! "$VENV/bin/python" -c 'import pyverbs.qp' 2>/dev/null; then
    step "pyverbs" add_pyverbs || return 1
  fi
  step "a kernel for the guest" "$VENV/bin/python" -m tests.rdma.machine build
}

# add_pyverbs: copy Debian's python3-pyverbs, made for Debian's Python, into the virtual environment.
add_pyverbs() {
  local folder site
  folder=$(mktemp -d)
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  (
    cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download python3-pyverbs &&
      dpkg-deb -x python3-pyverbs_*.deb . && cp -r usr/lib/python3/dist-packages/pyverbs "$site/"
  ) && "$VENV/bin/python" -c 'import pyverbs.qp'
  local status=$?
  rm -rf "$folder"
  return $status
}
