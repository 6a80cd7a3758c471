# torchrun around `satune train`. Sourced.
# shellcheck shell=bash

# shellcheck source=launch/lib_ranks.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_ranks.sh"

TORCHRUN=${TORCHRUN:-$ROOT/.venv/bin/torchrun}
NPROC=${NPROC:-$(default_processes)}
MAX_RESTARTS=${MAX_RESTARTS:-0}

check_torchrun() {
  check_satune
  command -v "$TORCHRUN" >/dev/null || die "found no $TORCHRUN, expected torchrun of torch 2 (or its path in TORCHRUN)"
  whole_number NPROC "$NPROC" 1
  whole_number MAX_RESTARTS "$MAX_RESTARTS"
}

# torchrun ends with 1 whatever its ranks end with. This is the code that the first rank to fail in the last
# attempt has left in its error file; nothing where none has.
code_of_first_failure() {
  local attempts first
  mapfile -t attempts < <(find "$1" -type d -name 'attempt_*' | sort -V)
  if ((${#attempts[@]} == 0)); then return; fi
  first=$(find "${attempts[-1]}" -name error.json -printf '%T@ %p\n' | sort -n | head -n 1)
  if [[ -n $first ]]; then grep -o '"errorCode": *[0-9]*' "${first#* }" | grep -o '[0-9]*$' || true; fi
}

# torchrun's options, then satune's arguments after "--".
run_torchrun() {
  local options=() folder code=0 cause
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  folder=$(mktemp -d)
  start_ranks "$folder/stopped" "$TORCHRUN" --no-python --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
    --log-dir "$folder/log" "${options[@]}" "$SATUNE" train "$@" || code=$?
  if ((code == 1)); then
    cause=$(code_of_first_failure "$folder/log")
    code=${cause:-1}
  fi
  rm -rf "$folder"
  return "$code"
}
