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
  HEAD_WITHIN    seconds to wait until the name HEAD is known (default: 60)
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
  "$(dirname "$TORCHRUN")/python" - "$HEAD" "$HEAD_WITHIN" <<'PYTHON'
import socket, sys, time
head, seconds = sys.argv[1], int(sys.argv[2])
end, told = time.monotonic() + seconds, False
while True:
    try:
        family, kind, _, _, address = socket.getaddrinfo(head, 9, type=socket.SOCK_DGRAM)[0]
        break
    except OSError as error:  # a cluster may learn the name of a machine when it starts
        if time.monotonic() >= end:
            sys.exit(f"error: train_nodes.sh: HEAD: found {head}, which does not resolve ({error.strerror}), "
                     "expected machine 0's name or address")
        if not told:
            print(f"train_nodes.sh: HEAD: {head} does not resolve; waiting up to {seconds} s for it", file=sys.stderr)
        told = True
        time.sleep(0.5)
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
HEAD_PORT=${HEAD_PORT:-29400}
HEAD_WITHIN=${HEAD_WITHIN:-60}
whole_number NNODES "$NNODES" 1
whole_number NODE_RANK "$NODE_RANK"
whole_number HEAD_PORT "$HEAD_PORT" 1 65535
whole_number HEAD_WITHIN "$HEAD_WITHIN"
((NODE_RANK < NNODES)) || die "NODE_RANK: found $NODE_RANK, expected less than NNODES=$NNODES"
check_torchrun
if [[ -z ${LOCAL_ADDR:-} ]]; then LOCAL_ADDR=$(own_address) || exit 2; fi
# torchrun would find out by name which machine holds the rendezvous.
is_host=$([[ $NODE_RANK == 0 ]] && echo true || echo false)
run_torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" --rdzv-backend c10d --rdzv-id "${RUN_ID:-satune}" \
  --rdzv-endpoint "$HEAD:$HEAD_PORT" --rdzv-conf "is_host=$is_host" --local-addr "$LOCAL_ADDR" -- "$@"
