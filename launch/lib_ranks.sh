# A program that starts ranks of satune (torchrun, mpirun), run so that a stop saves. Sourced.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SATUNE=${SATUNE:-$ROOT/build/release/satune}

die() { echo "error: $(basename "$0"): $*" >&2; exit 2; }

# whole_number NAME VALUE [LEAST [MOST]]
whole_number() {
  [[ $2 =~ ^[0-9]{1,9}$ ]] || die "$1: found $2, expected a whole number"
  ((10#$2 >= ${3:-0})) || die "$1: found $2, expected at least $3"
  ((10#$2 <= ${4:-999999999})) || die "$1: found $2, expected at most $4"
}

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

# catches ID SIGNAL: the process has a handler for it. A rank that still loads its libraries would die of it.
catches() {
  local key value mask=0
  while read -r key value; do
    if [[ $key == SigCgt: ]]; then mask=$value; fi
  done < <(cat "/proc/$1/status" 2>/dev/null || true)
  ((0x$mask >> ($(kill -l "$2") - 1) & 1))
}

# Signals go to the ranks themselves. Starters answer SIGTERM by killing ranks (torchrun after 30 s, in which
# a large model is not saved) and SIGUSR1 by dying. Ranks on other machines agree with those on this one.
pass_on() {
  local id found
  found=$(ranks) || true
  for id in $found; do undelivered+=("$1 $id"); done
  if [[ $1 == USR1 ]]; then return 0; fi
  stops=$((stops + 1)) last_stop=$1
  told="$told $found "
  if [[ -n $found ]]; then return 0; fi
  unstarted=1
  kill -s TERM "$starter" 2>/dev/null || true
}

# A second stop also ends ranks that have no handler, and may never have one.
deliver() {
  local entry id signal left=()
  for entry in "${undelivered[@]}"; do
    signal=${entry% *} id=${entry#* }
    if [[ ! -e /proc/$id ]]; then continue; fi
    if [[ $signal != USR1 ]] && ((stops > 1)) || catches "$id" "$signal"; then
      kill -s "$signal" "$id" 2>/dev/null || true
      if [[ $signal != USR1 ]]; then delivered=1; fi
    else
      left+=("$entry")
    fi
  done
  undelivered=("${left[@]}")
}

# Ranks that came after the stop. Those that the starter was just starting are told as well. Later ones are to
# replace a rank that failed while it stopped: the starter knows nothing of the stop.
end_new_ranks() {
  local id
  for id in $(ranks); do
    if [[ $told == *[[:space:]]"$id"[[:space:]]* ]]; then continue; fi
    if ((delivered)); then
      kill -s TERM "$starter" 2>/dev/null || true
    else
      undelivered+=("$last_stop $id")
      told="$told $id "
    fi
  done
}

# start_ranks STOPPED_FILE PROGRAM ARGUMENTS...: returns its exit code; 4 when the ranks were stopped and can
# be resumed, that of the signal when a second one ended them. Starters take every code but 0 for a failure, so
# ranks tell of a stop by making STOPPED_FILE.
start_ranks() {
  local starter asked=() undelivered=() told='' delivered=0 stops=0 last_stop='' unstarted=0 code=0 signal
  export SATUNE_STOPPED_FILE=$1
  shift
  rm -f "$SATUNE_STOPPED_FILE"
  # In a session of its own, so that Ctrl-C reaches the ranks once: through the traps.
  setsid "$@" &
  starter=$!
  # Traps run between any two commands of the loop: they only note what came.
  trap 'asked+=(TERM)' TERM HUP
  trap 'asked+=(INT)' INT
  trap 'asked+=(USR1)' USR1
  while kill -0 "$starter" 2>/dev/null; do
    while ((${#asked[@]} > 0)); do
      signal=${asked[0]}
      asked=("${asked[@]:1}")
      pass_on "$signal"
    done
    if ((stops > 0 && !unstarted)); then end_new_ranks; fi
    deliver
    # Ends when a trap has run. Not until the starter ends: a signal that comes just before bash begins to wait
    # would be looked at only then.
    if ((${#asked[@]} == 0)); then
      sleep 0.1 &
      wait $! || true
    fi
  done
  wait "$starter" || code=$?
  trap - TERM HUP INT USR1
  # Where another code came with the file, ranks were stopped because one had failed. What has not begun can be
  # resumed as well.
  if [[ ($code == 0 && -e $SATUNE_STOPPED_FILE) || $unstarted == 1 ]]; then
    code=4
  elif ((code != 0 && stops > 1)); then
    code=$((128 + $(kill -l "$last_stop")))
  fi
  rm -f "$SATUNE_STOPPED_FILE"
  return "$code"
}
