# A program that starts ranks of satune (torchrun, mpirun), run so that a stop saves. Sourced.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SATUNE=${SATUNE:-$ROOT/build/release/satune}

die() { echo "error: $(basename "$0"): $*" >&2; exit 2; }

whole_number() { [[ $2 =~ ^[0-9]+$ ]] || die "$1: found $2, expected a whole number"; }

check_satune() { [[ -x $SATUNE ]] || die "found no $SATUNE, expected the built program (or its path in SATUNE)"; }

# One rank for each card that may be used, one on a machine without.
default_processes() {
  local cards=(/dev/nvidia[0-9]*) listed
  [[ -e ${cards[0]} ]] || cards=()
  local count=${#cards[@]}
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra listed <<<"$CUDA_VISIBLE_DEVICES"
    if ((${#listed[@]} < count)); then count=${#listed[@]}; fi
  fi
  echo $((count > 0 ? count : 1))
}

# Ids of the ranks that `starter` has on this machine. What else it may have started (ssh) is not meant.
ranks() {
  local id name children
  name=$(basename "$SATUNE")
  children=$(cat "/proc/$starter/task/"*/children 2>/dev/null || true)
  for id in $children; do
    if [[ $(cat "/proc/$id/comm" 2>/dev/null) == "${name:0:15}" ]]; then echo "$id"; fi
  done
}

# Signals go to the ranks themselves. Starters answer SIGTERM by killing ranks (torchrun after 30 s, in which
# a large model is not saved) and SIGUSR1 by dying. Ranks on other machines agree with those on this one.
# (A bare `return` in a trap would return what the trap interrupted.)
pass_on() {
  local id found
  found=$(ranks)
  for id in $found; do kill -s "$1" "$id" 2>/dev/null || true; done
  if [[ $1 == USR1 ]]; then return 0; fi
  told="$told $found "
  if [[ -n $found ]]; then return 0; fi
  unstarted=1
  kill -s TERM "$starter" 2>/dev/null || true
}

# A rank that failed while it stopped would be started again: the starter knows nothing of the stop.
end_restarted_ranks() {
  local id
  for id in $(ranks); do
    if [[ $told != *[[:space:]]"$id"[[:space:]]* ]]; then kill -s TERM "$starter" 2>/dev/null || true; fi
  done
}

# start_ranks STOPPED_FILE PROGRAM ARGUMENTS...: returns its exit code; 4 when the ranks were stopped and can
# be resumed. Starters take every code but 0 for a failure, so ranks tell of a stop by making STOPPED_FILE.
start_ranks() {
  local starter told='' unstarted=0 code=0
  export SATUNE_STOPPED_FILE=$1
  shift
  rm -f "$SATUNE_STOPPED_FILE"
  # In a session of its own, so that Ctrl-C reaches the ranks once: through the traps.
  setsid "$@" &
  starter=$!
  trap 'pass_on TERM' TERM HUP
  trap 'pass_on INT' INT
  trap 'pass_on USR1' USR1
  while kill -0 "$starter" 2>/dev/null; do
    if [[ -z $told ]]; then
      # Ends when a trap has run. Not until the starter ends: a signal that comes just before bash begins to wait
      # would be looked at only then.
      sleep 0.2 &
      wait $! || true
    else
      end_restarted_ranks
      sleep 0.2
    fi
  done
  wait "$starter" || code=$?
  trap - TERM HUP INT USR1
  # Where another code came with the file, ranks were stopped because one had failed. What has not begun can be
  # resumed as well.
  if [[ ($code == 0 && -e $SATUNE_STOPPED_FILE) || $unstarted == 1 ]]; then code=4; fi
  rm -f "$SATUNE_STOPPED_FILE"
  return "$code"
}
