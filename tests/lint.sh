#!/usr/bin/env bash
# clang-tidy over the whole tree, over what changed since a commit, or over the files given. 16-46 s a file that
# includes LibTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { echo "usage: tests/lint.sh [--since COMMIT | FILE...]"; }

readonly BUILD=build/lint
readonly ROOMS=('data/*.cpp' 'model/*.cpp' 'evaluation/*.cpp' 'trainer/*.cpp')
command -v clang-tidy >/dev/null || { echo "error: tests/lint.sh: found no clang-tidy, expected the package of that name" >&2; exit 3; }
case ${1:-} in
  -h | --help) usage; exit 0 ;;
  --since) mapfile -t files < <(git diff --name-only --diff-filter=d "${2:?--since needs a commit}" -- "${ROOMS[@]}") ;;
  "") mapfile -t files < <(git ls-files "${ROOMS[@]}") ;;
  -*) echo "error: tests/lint.sh: unknown option $1, expected --since" >&2; exit 2 ;;
  *) files=("$@") ;;
esac
# A command for each file: the build compiles them several at a time.
cmake --preset release -B "$BUILD" -DSATUNE_UNITY=OFF >/dev/null
# gcc's precompiled header and its warning switches are not clang's.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -e 's/-Winvalid-pch//g; s/-include [^ ]*cmake_pch.hxx//g; s/-Wno-restrict//g; s/-fopenmp//g' \
  "$BUILD/compile_commands.json" >"$work/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs -r -P "$(nproc)" -n 1 clang-tidy --quiet -p "$work"
echo "${#files[@]} files linted"
