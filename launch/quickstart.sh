#!/usr/bin/env bash
# From nothing to a Shared-Attention fine-tune: set-up, build, data, a dense base, SA over its deep layers.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
usage: launch/quickstart.sh [--afresh] [--no-setup] [--output DIR] [--seed N] [--threads N]

  --afresh       do everything again, also what an earlier run has finished
  --no-setup     take what is installed and built
  --output DIR   where the results go (default: runs/quickstart)
  --seed N       seed of the data, the weights and the order of training (default: 42)
  --threads N    CPU threads (default: all cores, four at most)
TEXT
}

die() { echo "error: quickstart.sh: $*" >&2; exit 2; }

# More than four threads only wait for each other on a model this small.
afresh=0 with_setup=1 out=runs/quickstart seed=42 threads=$(($(nproc) < 4 ? $(nproc) : 4))
while (($# > 0)); do
  case $1 in
    --afresh) afresh=1 ;;
    --no-setup) with_setup=0 ;;
    --output) out=${2:?--output needs a folder}; shift ;;
    --seed) seed=${2:?--seed needs a number}; shift ;;
    --threads) threads=${2:?--threads needs a number}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option $1, expected --afresh, --no-setup, --output, --seed or --threads" ;;
  esac
  shift
done
[[ $seed =~ ^[0-9]+$ ]] || die "--seed: found $seed, expected a whole number"
[[ $threads =~ ^[1-9][0-9]*$ ]] || die "--threads: found $threads, expected a whole number of at least 1"
export OMP_NUM_THREADS=$threads
# Threads that sleep while they wait: on cores that others use too, spinning ones run at a seventh of the speed.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

readonly BUILD=${SATUNE_BUILD_DIR:-build/release}
readonly SATUNE=$BUILD/satune
readonly TEMPLATE=configs/quickstart-template.json
readonly SPAN=3-7

say() { printf '\nquickstart: %s\n' "$*"; }

set_up_and_build() {
  ./launch/setup.sh
  # shellcheck disable=SC1091
  source .setup/environment.sh
  # shellcheck source=launch/jobs.sh
  source launch/jobs.sh
  say "building satune"
  cmake --preset release
  cmake --build build/release --target satune -j "$(build_jobs)"
}

# stage NAME RESULT COMMAND...: skipped when the command was finished by the same program, inputs and stages
# before it; otherwise what is left of an earlier attempt is removed first.
stage() {
  local name=$1 result=$2 stamp=$out/.done-$1
  shift 2
  if [[ -e $out/$result && -f $stamp && $(<"$stamp") == "$key" ]]; then
    say "$name: done before, skipped (--afresh does it again)"
    return
  fi
  say "$name"
  rm -rf "${out:?}/$result" "$stamp"
  "$@"
  printf '%s' "$key" >"$stamp"
}

train() {
  local folder=$1 model=$2 config=$3
  shift 3
  # ${replace:-}: "exec" where the caller's shell is to become the program, so that signals reach it.
  ${replace:-} "$SATUNE" train "$config" model_name_or_path="$model" train_file="$out/data/train.json" \
    eval_file="$out/data/heldout.json" template=$TEMPLATE output_dir="$out/$folder" seed="$seed" \
    num_threads="$threads" "$@"
}

rows_of() { if [[ -f $1 ]]; then wc -l <"$1"; else echo 0; fi; }

# Two data-parallel processes, stopped on purpose half-way; the same command continues where they were.
train_interrupted() {
  local folder=$1 model=$2 config=$3 half=$4 pid code=0
  shift 4
  local ranks=(--nproc-per-node 2 num_threads=$(((threads + 1) / 2)) gradient_accumulation_steps=1)
  # Each rank takes a card of its own. (In another shell: the library has names of ours.)
  if (($(bash -c 'source launch/lib_ranks.sh && default_processes') < 2)); then ranks+=(device=cpu); fi
  replace="exec" train "$folder" "$model" "$config" "${ranks[@]}" "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null && (($(rows_of "$out/$folder/metrics.jsonl") < half)); do sleep 0.1; done
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" || code=$?
  if [[ $code != 4 ]]; then
    echo "error: quickstart.sh: the stopped run ended with exit code $code, expected 4 (saved and resumable)" >&2
    return 1
  fi
  say "interrupted on purpose after step $(rows_of "$out/$folder/metrics.jsonl"), with two processes: they continue"
  train "$folder" "$model" "$config" "${ranks[@]}" "$@"
  say "resumed and finished: $(rows_of "$out/$folder/metrics.jsonl") steps, each of them logged once"
}

evaluate() {
  local name=$1 model=$2 file tasks=()
  shift 2
  for file in "$out"/data/heldout-*.json; do tasks+=(--task "exact_match=$file"); done
  "$SATUNE" eval "$model" --task response_loss="$out/data/heldout.json" "${tasks[@]}" --template $TEMPLATE \
    --precision fp32 --max-new-tokens 24 --output "$out/eval-$name.json" "$@" >"$out/eval-$name.txt"
}

answer() {
  local instruction=$1 input=$2
  printf '  %s\n  %s\n  -> ' "$instruction" "$input"
  "$SATUNE" generate "$out/sa/export" --instruction "$instruction" --input "$input" --template $TEMPLATE \
    --precision fp32 --max-new-tokens 24 2>/dev/null
}

if [[ $with_setup == 1 ]]; then set_up_and_build; fi
[[ -x $SATUNE ]] || die "found no $SATUNE, expected the built program; run without --no-setup"
if [[ $afresh == 1 ]]; then rm -rf "${out:?}/"{data,init,dense,sa,dense-more} "$out"/eval-* "$out"/.done-* "$out/table.json"; fi
mkdir -p "$out"
key=$(cat "$SATUNE" configs/quickstart-*.json launch/quickstart_data.py launch/quickstart.sh <(echo "$seed $threads") | sha256sum)

stage data data python3 launch/quickstart_data.py "$out/data" --seed "$seed"
stage init init "$SATUNE" init configs/quickstart-arch.json "$out/init" \
  --train-tokenizer "$out/data/train.json" --template $TEMPLATE --seed "$seed"
# One process on any machine: a rank for each of its cards would make steps of more rows.
stage "dense-base" dense train dense "$out/init" configs/quickstart-base.json --nproc-per-node 1
stage "sa-fine-tune" sa train_interrupted sa "$out/dense/export" configs/quickstart-finetune.json 75 sharing.layers=$SPAN
stage "dense-fine-tune" dense-more train dense-more "$out/dense/export" configs/quickstart-finetune.json \
  --nproc-per-node 1
stage "evaluation-dense" eval-dense.json evaluate dense "$out/dense/export"
stage "evaluation-direct" eval-direct.json evaluate direct "$out/dense/export" --sharing $SPAN
stage "evaluation-sa" eval-sa.json evaluate sa "$out/sa/export"
stage "evaluation-dense-more" eval-dense_more.json evaluate dense_more "$out/dense-more/export"

say "Shared Attention over layers $SPAN of 8"
python3 launch/quickstart_table.py "$out"

say "two held-out instructions, answered by the fine-tuned SA model"
while IFS=$'\t' read -r instruction input; do answer "$instruction" "$input"; done < <(
  python3 launch/quickstart_data.py "$out/data" --show 2)

say "the fine-tuned SA model, for transformers, vLLM and satune: $out/sa/export"
