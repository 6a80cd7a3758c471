#!/usr/bin/env bash
# Ranks started by Open MPI's mpirun. satune takes its rank from mpirun's variables and uses nothing else of MPI.
set -euo pipefail

# shellcheck source=launch/lib_ranks.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_ranks.sh"

usage() {
  cat <<'TEXT'
usage: launch/train_mpi.sh RANKS CONFIG.json [a.b=c ...]

Run it on the first machine of HOSTFILE, in a folder that all machines share. SIGTERM and Ctrl-C save and end
with exit code 4: the same command continues. SIGUSR1 saves and goes on.

Environment:
  HOSTFILE      one "HOST slots=N" a line (default: this machine alone)
  MASTER_ADDR   where the ranks meet (default: the first host of HOSTFILE, else 127.0.0.1)
  MASTER_PORT   a free port there (default: 29500)
  MPIRUN        (default: mpirun)
  OMPI_ALLOW_RUN_AS_ROOT   1, and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, for mpirun to start ranks for root
  SATUNE        the program (default: build/release/satune)
TEXT
}

first_host() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' -e 's/^[[:space:]]*\([^[:space:]]*\).*/\1/' "$1" | head -n 1; }

case ${1:-} in
  -h | --help) usage; exit 0 ;;
esac
(($# >= 2)) || { usage >&2; exit 2; }
processes=$1
shift
whole_number RANKS "$processes" 1
check_satune
MPIRUN=${MPIRUN:-mpirun}
command -v "$MPIRUN" >/dev/null || die "found no $MPIRUN, expected Open MPI's (or its path in MPIRUN)"
options=(-np "$processes")
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
if [[ -n ${HOSTFILE:-} ]]; then
  [[ -r $HOSTFILE ]] || die "HOSTFILE: found no $HOSTFILE, expected a file of hosts"
  options+=(--hostfile "$HOSTFILE")
  if [[ $MASTER_ADDR == 127.0.0.1 ]]; then MASTER_ADDR=$(first_host "$HOSTFILE"); fi
fi
MASTER_PORT=${MASTER_PORT:-29500}
whole_number MASTER_PORT "$MASTER_PORT" 1 65535
if [[ $(id -u) == 0 && -z ${OMPI_ALLOW_RUN_AS_ROOT:-} ]]; then
  die "found root, expected another user: mpirun starts nothing for root but where OMPI_ALLOW_RUN_AS_ROOT=1 and \
OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 are set"
fi
export MASTER_ADDR MASTER_PORT
# mpirun would bind each rank to one core, and a rank has several threads. Other machines get the variables
# that are named.
start_ranks "$PWD/.satune-stopped-$$" "$MPIRUN" "${options[@]}" --bind-to none -x MASTER_ADDR -x MASTER_PORT \
  -x SATUNE_STOPPED_FILE "$SATUNE" train "$@"
