#!/usr/bin/env bash
# clang-tidy over the whole tree, or over the files given. 16-46 s a file that includes LibTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${SATUNE_BUILD_DIR:-build/release}
[[ -f $build/compile_commands.json ]] || { echo "error: tests/lint.sh: no $build/compile_commands.json; run cmake --preset release" >&2; exit 3; }
files=("$@")
if ((${#files[@]} == 0)); then mapfile -t files < <(git ls-files 'data/*.cpp' 'model/*.cpp' 'evaluation/*.cpp' 'trainer/*.cpp'); fi
# gcc's precompiled header and its warning switches are not clang's.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -e 's/-Winvalid-pch//g; s/-include [^ ]*cmake_pch.hxx//g; s/-Wno-restrict//g; s/-fopenmp//g' \
  "$build/compile_commands.json" >"$work/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs -P 2 -n 1 clang-tidy --quiet -p "$work"
