#!/usr/bin/env bash
# Reads the machine, then brings in what the build needs. Safe to repeat: what is done is skipped.
# Everything lands in .venv/ and .setup/ of this checkout, except Debian packages where there is root.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly ROOT=$PWD
# shellcheck source=launch/lib_setup.sh
source launch/lib_setup.sh

usage() {
  cat <<'TEXT'
usage: launch/setup.sh [--tests]

  --tests   also install what the tests compare with (transformers, tokenizers, ...) and the test libraries

Environment:
  SATUNE_PYTHON   the Python for .venv (default: python3; 3.10 or newer)
TEXT
}

with_tests=0
for argument in "$@"; do
  case $argument in
    --tests) with_tests=1 ;;
    -h | --help) usage; exit 0 ;;
    *) fail 2 "setup.sh: unknown option $argument, expected --tests or --help" ;;
  esac
done

mkdir -p .setup/done
exec 9>.setup/lock
flock -n 9 || { say "another set-up is running in this checkout: waiting for it"; flock 9; }

say "reading the machine"
check_system
check_disk "$with_tests"
check_driver
steps=4
if [[ $with_tests == 1 ]]; then steps=6; fi

step 1 $steps "Debian packages"
install_debian_packages "$with_tests"
source_environment
check_compiler

step 2 $steps "Python environment .venv"
make_venv

step 3 $steps "LibTorch: $(grep -v '^#' launch/requirements.txt)"
install_python libtorch launch/requirements.txt
install_python cudnn-frontend launch/requirements-cudnn.txt --no-deps

step 4 $steps "CUDA compiler"
install_nvcc

if [[ $with_tests == 1 ]]; then
  step 5 $steps "what the tests compare with"
  install_python tests launch/requirements-tests.txt
  step 6 $steps "transformers 4.57 in a folder of its own"
  install_python transformers-4.57 launch/requirements-transformers-4.57.txt \
    --no-deps --upgrade --target "$ROOT/.venv/transformers-4.57"
fi
say "set-up is complete"
