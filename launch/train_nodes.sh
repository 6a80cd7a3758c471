#!/usr/bin/env bash
# The ranks of several machines under torchrun: run it on each of them with the same arguments.
set -euo pipefail

# shellcheck source=launch/lib_torchrun.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_torchrun.sh"

usage() {
  cat <<'TEXT'
usage: NNODES=N NODE_RANK=I HEAD=HOST launch/train_nodes.sh CONFIG.json [a.b=c ...]

Model, data and output_dir must be on a file system that all machines share. SIGTERM and Ctrl-C on one of them
save and end all with exit code 4: the same commands continue. SIGUSR1 saves and goes on.

Environment:
  NNODES         machines
  NODE_RANK      which of them this is, from 0
  HEAD           name or address of machine 0
  HEAD_PORT      a free port there (default: 29400)
  RUN_ID         the same on all machines, another for each run at one time on HEAD (default: satune)
  LOCAL_ADDR     this machine's address for the others (default: the one from which it reaches HEAD)
  NPROC          ranks on this machine (default: one for each card, else 1)
  MAX_RESTARTS   how often all ranks are started again after a failure (default: 0)
  SATUNE         the program (default: build/release/satune)
  TORCHRUN       (default: .venv/bin/torchrun)
TEXT
}

# The machine's name need not resolve on the others, so torchrun is told an address.
own_address() {
  if [[ $NODE_RANK == 0 ]]; then
    echo "$HEAD"
    return
  fi
  "$(dirname "$TORCHRUN")/python" - "$HEAD" <<'PYTHON'
import socket, sys
family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
probe = socket.socket(family, kind)
probe.connect(address)  # sends nothing
print(probe.getsockname()[0])
PYTHON
}

case ${1:-} in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac
for name in NNODES NODE_RANK HEAD; do
  [[ -n ${!name:-} ]] || die "$name: found nothing, expected it set (see --help)"
done
whole_number NNODES "$NNODES"
whole_number NODE_RANK "$NODE_RANK"
((NODE_RANK < NNODES)) || die "NODE_RANK: found $NODE_RANK, expected less than NNODES=$NNODES"
check_torchrun
LOCAL_ADDR=${LOCAL_ADDR:-$(own_address)}
# torchrun would find out by name which machine holds the rendezvous.
is_host=$([[ $NODE_RANK == 0 ]] && echo true || echo false)
run_torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" --rdzv-backend c10d --rdzv-id "${RUN_ID:-satune}" \
  --rdzv-endpoint "$HEAD:${HEAD_PORT:-29400}" --rdzv-conf "is_host=$is_host" --local-addr "$LOCAL_ADDR" -- "$@"
