# How many compilers may run at once. Sourced.
# shellcheck shell=bash

# At most two, one core each, and 2 GB of free memory for each: a file over LibTorch takes 1 to 1.5 GB.
build_jobs() {
  local cores memory jobs=2
  cores=$(nproc)
  memory=$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
  if ((cores < jobs)); then jobs=$cores; fi
  if ((memory < jobs)); then jobs=$memory; fi
  if ((jobs < 1)); then jobs=1; fi
  echo "$jobs"
}
