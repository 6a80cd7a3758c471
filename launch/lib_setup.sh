# The steps of setup.sh as functions. Sourced with ROOT set and the current folder at ROOT.
# shellcheck shell=bash

readonly BUILD_PACKAGES=(g++ make cmake ninja-build ccache mold pkg-config git ca-certificates
  python3 python3-venv python3-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libcli11-dev
  libsentencepiece-dev libpcre2-dev libpng-dev libgloo-dev)
readonly TEST_PACKAGES=(libgtest-dev libgmock-dev libbenchmark-dev shellcheck iproute2 openmpi-bin)
# For the pages in tests/browser.py, whose tests skip without it. Ubuntu has no browser as a package.
readonly BROWSER_PACKAGES=(chromium-headless-shell)
# Of tests/run.sh --full: 100 MB that the usual tests do without.
readonly LINT_PACKAGES=(clang-tidy)
# The oldest driver that runs CUDA 13 programs.
readonly DRIVER_NEEDED=580

say() { printf 'setup: %s\n' "$*"; }
step() { printf 'setup: [%s/%s] %s\n' "$1" "$2" "$3"; }
fail() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}

# A step is done when its stamp holds the same key (the pinned versions it was done with).
is_done() { [[ -f .setup/done/$1 && $(<".setup/done/$1") == "$2" ]]; }
mark_done() { printf '%s' "$2" >".setup/done/$1"; }

check_system() {
  local id=unknown version=unknown machine
  if [[ -r ${SATUNE_OS_RELEASE:-/etc/os-release} ]]; then
    # shellcheck disable=SC1090
    read -r id version < <(source "${SATUNE_OS_RELEASE:-/etc/os-release}" && echo "${ID:-unknown} ${VERSION_ID:-unknown}")
  fi
  machine=$(uname -m)
  [[ $machine == x86_64 ]] || fail 3 "processor: found $machine, expected x86_64 (the pinned LibTorch wheel is for it)"
  case "$id $version" in
    "debian 12" | "debian 13" | "ubuntu 24.04") say "system $id $version, $(nproc) cores" ;;
    *) fail 3 "operating system: found $id $version, expected Debian 12 or Ubuntu 24.04; launch/Dockerfile builds an image that is one" ;;
  esac
}

is_debian() { grep -qx 'ID=debian' "${SATUNE_OS_RELEASE:-/etc/os-release}" 2>/dev/null; }

# Gigabytes still to come: the wheel with its CUDA libraries, the compiler, the peers, the build.
disk_needed_gb() {
  local needed=1
  [[ -f .setup/done/libtorch ]] || needed=$((needed + 6))
  [[ -f .setup/done/nvcc ]] || needed=$((needed + 1))
  if [[ $1 == 1 && ! -f .setup/done/tests ]]; then needed=$((needed + 1)); fi
  echo "$needed"
}

check_disk() {
  local needed available
  needed=$(disk_needed_gb "$1")
  available=$(($(df --output=avail -k "$ROOT" | tail -1) / 1000000))
  if ((available < needed)); then
    fail 3 "disk of $ROOT: found $available GB free, expected $needed GB; free some, or move this checkout to a larger disk"
  fi
}

driver_version() {
  local file=${SATUNE_DRIVER_FILE:-/proc/driver/nvidia/version}
  [[ -r $file ]] || return 0
  # "... Kernel Module  535.183.01 ..." or "... Open Kernel Module for x86_64  580.95.05 ..."
  grep -m1 'Kernel Module' "$file" | grep -oE '[0-9]{3,}(\.[0-9]+)+' | head -1 || true
}

check_driver() {
  local version
  version=$(driver_version)
  if [[ -z $version ]]; then
    say "no NVIDIA driver: runs use the CPU"
  elif ((${version%%.*} < DRIVER_NEEDED)); then
    say "NVIDIA driver: found $version, a card needs $DRIVER_NEEDED or newer: runs use the CPU until the driver is updated"
  else
    say "NVIDIA driver $version"
  fi
}

missing_packages() {
  local package
  for package in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true) == installed ]] || echo "$package"
  done
}

install_debian_packages() {
  local wanted=("${BUILD_PACKAGES[@]}") missing sudo=()
  if [[ $1 == 1 ]]; then wanted+=("${TEST_PACKAGES[@]}"); fi
  if [[ $1 == 1 ]] && is_debian; then wanted+=("${BROWSER_PACKAGES[@]}"); fi
  if [[ $1 == 1 && ${SATUNE_FULL:-0} == 1 ]]; then wanted+=("${LINT_PACKAGES[@]}"); fi
  # A compiler or Python from elsewhere does as well as the package.
  mapfile -t missing < <(missing_packages "${wanted[@]}" | drop_present_tools)
  if ((${#missing[@]} == 0)); then
    say "nothing missing"
    return
  fi
  if is_done debian-local "${missing[*]}"; then
    say "unpacked already in .setup/debian"
    return
  fi
  say "missing: ${missing[*]}"
  if [[ $(id -u) != 0 ]] && command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=(sudo); fi
  if [[ $(id -u) == 0 || ${#sudo[@]} -gt 0 ]]; then
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
  else
    unpack_packages "${missing[@]}"
    mark_done debian-local "${missing[*]}"
  fi
}

drop_present_tools() {
  local package
  while read -r package; do
    case $package in
      g++ | make | cmake | ccache | mold | git | pkg-config | clang-tidy) command -v "$package" >/dev/null && continue ;;
      chromium-headless-shell) command -v chromium >/dev/null || command -v google-chrome >/dev/null && continue ;;
      iproute2) command -v ip >/dev/null && continue ;;
      openmpi-bin) command -v mpirun >/dev/null && continue ;;
      ninja-build) command -v ninja >/dev/null && continue ;;
      python3) command -v "$(python_program)" >/dev/null && continue ;;
      python3-dev) has_python_headers && continue ;;
      python3-venv) "$(python_program)" -c 'import ensurepip, venv' 2>/dev/null && continue ;;
    esac
    echo "$package"
  done
}

python_program() { echo "${SATUNE_PYTHON:-python3}"; }

has_python_headers() {
  [[ -f $("$(python_program)" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/Python.h ]]
}

# Without root: the packages and what they depend on, unpacked beside the checkout's other set-up files.
unpack_packages() {
  local state=$ROOT/.setup/apt prefix=$ROOT/.setup/debian names
  say "no root: unpacking the packages into .setup/debian"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/debs" "$prefix"
  local options=(-o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache" -o Debug::NoLocking=1)
  apt-get "${options[@]}" update -q
  mapfile -t names < <(apt-get "${options[@]}" install -s --no-install-recommends "$@" |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p')
  (cd "$state/debs" && apt-get "${options[@]}" download -q "${names[@]}")
  local file
  for file in "$state"/debs/*.deb; do dpkg -x "$file" "$prefix"; done
  # The paths in pkg-config files are those of an installed package.
  find "$prefix" -name '*.pc' -exec sed -i "s|=/usr|=$prefix/usr|" {} +
  rm -rf "$state/debs"
}

# Written once, sourced by every script that configures, builds or runs.
source_environment() {
  local prefix=$ROOT/.setup/debian/usr
  if [[ -d $prefix ]]; then
    local libraries=$prefix/lib/x86_64-linux-gnu
    cat >.setup/environment.sh <<EOF
export PATH="$prefix/bin:\$PATH"
export CMAKE_PREFIX_PATH="$prefix:\${CMAKE_PREFIX_PATH:-}"
export PKG_CONFIG_PATH="$libraries/pkgconfig:$prefix/share/pkgconfig:\${PKG_CONFIG_PATH:-}"
export CPATH="$prefix/include\${CPATH:+:\$CPATH}"
export LIBRARY_PATH="$libraries\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
export LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
# Old-style RPATH: it also serves what our libraries load themselves.
export LDFLAGS="-Wl,-rpath,$libraries -Wl,--disable-new-dtags \${LDFLAGS:-}"
EOF
  else
    echo "# Nothing is unpacked locally: the system's folders do." >.setup/environment.sh
  fi
  # shellcheck disable=SC1091
  source .setup/environment.sh
}

check_compiler() {
  local version
  command -v g++ >/dev/null || fail 3 "compiler: found no g++, expected 12 or newer; it cannot be unpacked without root: ask for the package g++"
  version=$(g++ -dumpversion)
  ((${version%%.*} >= 12)) || fail 3 "compiler: found g++ $version, expected 12 or newer"
  command -v cmake >/dev/null || fail 3 "cmake: found none, expected 3.25 or newer"
}

make_venv() {
  local python
  python=$(python_program)
  command -v "$python" >/dev/null || fail 3 "Python: found no $python, expected 3.10 or newer (package python3)"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail 3 "Python: found $("$python" --version 2>&1), expected 3.10 or newer; give another with SATUNE_PYTHON"
  if [[ -x .venv/bin/python ]] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "there already"
    return
  fi
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv .venv
  else
    # Debian keeps pip's wheel in a package of its own, which unpacks without root.
    local wheel
    wheel=$(find .setup/debian/usr/share/python-wheels /usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | head -1 || true)
    [[ -n $wheel ]] || fail 3 "Python: found $python without venv, expected the package python3-venv"
    "$python" -m venv --without-pip .venv
    .venv/bin/python "$wheel/pip" install --no-index "$wheel"
  fi
}

# NAME FILE [pip options]: the pinned packages of FILE, once per content of FILE.
install_python() {
  local name=$1 file=$2 key
  shift 2
  key=$(sha256sum <"$file")
  if is_done "$name" "$key"; then
    say "there already"
    return
  fi
  .venv/bin/python -m pip install --disable-pip-version-check "$@" -r "$file"
  mark_done "$name" "$key"
}

install_nvcc() {
  local nvcc
  nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
  if [[ -n $nvcc ]] && "$nvcc" --version | grep -q 'release 13\.'; then
    say "$nvcc"
    mark_done nvcc "$nvcc"
    return
  fi
  local key
  key=$(sha256sum <launch/requirements-nvcc.txt)
  if is_done nvcc "$key" && [[ -x .setup/cuda/bin/nvcc ]]; then
    say "there already"
    return
  fi
  .venv/bin/python -m pip install --disable-pip-version-check -r launch/requirements-nvcc.txt
  link_cuda
  mark_done nvcc "$key"
}

# The PyPI packages lack what CMake's CUDA support and find_package(Torch) look for: lib64 and lib*.so.
link_cuda() {
  local wheel folder=.setup/cuda file name
  wheel=$(echo "$ROOT"/.venv/lib/python3.*/site-packages/nvidia/cu13)
  [[ -x $wheel/bin/nvcc ]] || fail 3 "CUDA compiler: found no nvcc in $wheel, expected it from $(grep -v '^#' launch/requirements-nvcc.txt)"
  rm -rf $folder
  mkdir -p $folder/lib
  # nvcc finds its parts relative to itself, so the programs are copied and not linked.
  cp -a "$wheel/bin" $folder/bin
  for name in include nvvm; do [[ ! -e $wheel/$name ]] || ln -s "$wheel/$name" $folder/$name; done
  for file in "$wheel"/lib/*; do
    name=$(basename "$file")
    ln -s "$file" "$folder/lib/$name"
    if [[ $name == *.so.* ]]; then ln -sf "$file" "$folder/lib/${name%%.so.*}.so"; fi
  done
  ln -s lib $folder/lib64
  mkdir -p $folder/targets/x86_64-linux
  ln -s ../../include $folder/targets/x86_64-linux/include
  ln -s ../../lib $folder/targets/x86_64-linux/lib
  say "nvcc in $folder/bin"
}
