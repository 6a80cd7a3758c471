#!/usr/bin/env bash
# The ranks of one machine under torchrun. `satune train` starts its ranks itself and needs no Python; this is
# for places where torchrun is what starts them.
set -euo pipefail

# shellcheck source=launch/lib_torchrun.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_torchrun.sh"

usage() {
  cat <<'TEXT'
usage: launch/train.sh CONFIG.json [a.b=c ...]

SIGTERM and Ctrl-C save and end with exit code 4: the same command continues. SIGUSR1 saves and goes on.

Environment:
  NPROC          ranks (default: one for each card, else 1)
  MAX_RESTARTS   how often the ranks are started again after a failure (default: 0)
  SATUNE         the program (default: build/release/satune)
  TORCHRUN       (default: .venv/bin/torchrun)
TEXT
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac
check_torchrun
# Without --local-addr ranks look for rank 0 under this machine's name, which need not resolve.
run_torchrun --standalone --local-addr 127.0.0.1 -- "$@"
