#!/usr/bin/env bash
# From nothing to passed tests: set-up, build, C++ tests, sanitised parsers, and what tests in Python call.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly ROOT=$PWD

usage() {
  cat <<'TEXT'
usage: tests/run.sh [--full] [--no-setup]

  --full       also the long tests and clang-tidy over the whole tree (SATUNE_FULL=1)
  --no-setup   take what is installed; for repeated runs without a network

Environment:
  SATUNE_REALDATA   real tokenizers, configs and models that some tests read (skipped by name where absent)
TEXT
}

with_setup=1
export SATUNE_FULL=${SATUNE_FULL:-0}
for argument in "$@"; do
  case $argument in
    --full) SATUNE_FULL=1 ;;
    --no-setup) with_setup=0 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: tests/run.sh: unknown option $argument, expected --full or --no-setup" >&2; exit 2 ;;
  esac
done

if [[ $with_setup == 1 ]]; then ./launch/setup.sh --tests; fi
if [[ -f .setup/environment.sh ]]; then
  # shellcheck disable=SC1091
  source .setup/environment.sh
fi
# shellcheck source=launch/jobs.sh
source launch/jobs.sh
JOBS=$(build_jobs)
readonly JOBS
export SATUNE_BUILD_DIR=$ROOT/build/release
# Threads that sleep while they wait: several programs share the cores here.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
readonly LOGS=$ROOT/build/test-logs
mkdir -p "$LOGS"

failed=()
closing=()

# stage NAME PATTERN COMMAND...: runs it, shows it, and keeps its seconds and the lines of its own summary.
stage() {
  local name=$1 pattern=$2 log start=$SECONDS result=passed
  shift 2
  log=$LOGS/${name// /-}.log
  printf '\n=== %s\n' "$name"
  if ! "$@" 2>&1 | tee "$log"; then
    result=FAILED
    failed+=("$name")
  fi
  closing+=("$(printf '%-22s %-7s %5d s' "$name" "$result" $((SECONDS - start)))")
  local line
  while read -r line; do closing+=("    $line"); done < <(grep -E "$pattern" "$log" | awk '!seen[$0]++' | tail -20)
}

finish() {
  printf '\n=== summary\n'
  printf '%s\n' "${closing[@]}"
  if ((${#failed[@]} > 0)); then
    printf 'FAILED:%s\n' "$(printf ' %s;' "${failed[@]}")"
    exit 1
  fi
  printf 'all stages passed in %d s\n' "$SECONDS"
}

build() { cmake --preset "$1" -DSATUNE_TESTS=ON -DSATUNE_BENCHMARKS=ON && cmake --build "build/$1" -j "$JOBS"; }
# Tests get one thread each while two run side by side; those about threads set their own.
run_ctest() { OMP_NUM_THREADS=1 ctest --test-dir "build/$1" -j "$JOBS" --output-on-failure --no-tests=error; }

# The one whose layout the tree has: other releases break lines elsewhere.
format_program() {
  local program
  for program in .venv/bin/clang-format clang-format-14 clang-format; do
    if "$program" --version 2>/dev/null | grep -q 'version 14\.'; then
      echo "$program"
      return
    fi
  done
  echo "error: found no clang-format 14, expected the one that ./launch/setup.sh --tests installs" >&2
  return 1
}

check_format() {
  local program
  program=$(format_program) || return 1
  git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -r "$program" --dry-run --Werror && echo "formatted"
}

# A parity test that skips because its program is missing would pass without testing anything.
run_pytest() {
  local log=$LOGS/pytest-output.log
  .venv/bin/python -m pytest -q -rfEs -p no:cacheprovider "$@" | tee "$log" || return 1
  if grep -q 'is not built at' "$log"; then
    echo "error: programs that parity tests need were not built" >&2
    return 1
  fi
}

# What the closing summary repeats of a stage: its totals, and the name and place of what failed.
readonly CTEST_LINES='tests passed|tests failed|Total Test time|: Failure$|^\[  FAILED  \]'
readonly PYTEST_LINES='^(FAILED|ERROR) |[0-9]+ (passed|failed|errors?).* in [0-9.]+s|^error:'

stage "build release" 'ninja: |error' build release
if ((${#failed[@]} > 0)); then finish; fi
stage "build asan-ubsan" 'ninja: |error' build asan-ubsan
stage "format" 'formatted|error' check_format
if [[ $SATUNE_FULL == 1 ]]; then stage "lint" 'error|files linted' tests/lint.sh; fi
stage "ctest release" "$CTEST_LINES" run_ctest release
stage "ctest asan-ubsan" "$CTEST_LINES" run_ctest asan-ubsan
# All in one session, so that no worker waits for others at the end of each folder, and with one worker more than
# cores: ranks that are hung or dead leave the cores idle half of the time. tests/conftest.py says in which order.
stage "pytest" "$PYTEST_LINES" run_pytest tests/parity tests/distributed tests/launch -n $((JOBS + 1)) --dist loadgroup \
  --no-loadscope-reorder
finish
