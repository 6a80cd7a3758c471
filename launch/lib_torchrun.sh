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
  whole_number NPROC "$NPROC"
  whole_number MAX_RESTARTS "$MAX_RESTARTS"
}

# torchrun's options, then satune's arguments after "--".
run_torchrun() {
  local options=() folder code=0
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  folder=$(mktemp -d)
  start_ranks "$folder/stopped" "$TORCHRUN" --no-python --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
    "${options[@]}" "$SATUNE" train "$@" || code=$?
  rm -rf "$folder"
  return "$code"
}
