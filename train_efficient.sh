#!/usr/bin/env bash
# The short way in; ./train_efficient.sh help tells what it does.
set -euo pipefail
caller="$PWD"
CDPATH='' cd -- "$(dirname -- "$0")"
repository="$PWD"
source utils/environment.sh

usage() {
  cat <<'END'
The short way in.

  ./train_efficient.sh
      on a terminal: asks for the preset and for the data set
  ./train_efficient.sh balanced|ultra|quality|baseline -s DATA [-m OUT] [any train.py flag]
      trains a head avatar with that preset, without questions
  ./train_efficient.sh demo [any train.py flag]
      everything on a procedural head: makes the environment, the data set,
      an avatar (Balanced), pictures and a table of metrics; run again, it
      continues where it was stopped

DATA_DIR names the data set where no -s does, SUBJECT the results where no -m
does: output/<preset>_$SUBJECT, else output/<preset>_<name of the data folder>.
DEMO_DIR (default: output/demo in the repository) is where the demo puts its
data and results. Flags that are typed win over those of the preset; --no_amp,
--no_warm_start and the like switch a part of it off.
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

run() {  # shows the exact command, then runs it
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

# Takes the flags that the script itself must know out of the arguments: $data,
# $model and $iterations ("" where not typed, the last where typed twice); $rest is what remains.
read_flags() {
  data='' model='' iterations='' rest=()
  local name value taken
  while [ $# -gt 0 ]; do
    # As argparse takes them: -m OUT, -mOUT, -m=OUT, --model_path OUT, --model_path=OUT.
    case "$1" in
      -s|--source_path|-m|--model_path|--iterations)
        [ $# -ge 2 ] || fail "$1 needs a value after it"
        name="$1" value="$2" taken=2 ;;
      --source_path=*|--model_path=*|--iterations=*) name="${1%%=*}" value="${1#*=}" taken=1 ;;
      -s?*|-m?*) name="${1:0:2}" value="${1:2}" taken=1; value="${value#=}" ;;
      *) rest+=("$1"); shift; continue ;;
    esac
    shift "$taken"
    [ -n "$value" ] || fail "$name is empty"
    case "$name" in
      -s|--source_path) data="$value" ;;
      -m|--model_path) model="$value" ;;
      *) iterations="$value" ;;
    esac
  done
}

# ---- a preset on one's own data: paths are relative to the caller's folder, as they are for train.py ----

train_preset() {
  local preset="$1" script=train.py named_by=-s flags
  shift
  read_flags "$@"
  cd -- "$caller"
  if [ -z "$data" ]; then
    data="${DATA_DIR:-}" named_by=DATA_DIR
    [ -n "$data" ] || fail "${SUBJECT:+SUBJECT is $SUBJECT, but }nothing says which data set to train on:" \
      "set DATA_DIR, or give -s DATA"
  fi
  [ -d "$data" ] || fail "${SUBJECT:+SUBJECT is $SUBJECT, but }there is no folder $data ($named_by)"
  if [ -z "$model" ]; then
    model="output/${preset}_${SUBJECT:-$(CDPATH='' cd -- "$data" && printf '%s' "${PWD##*/}")}"
  fi
  flags=(-s "$data" -m "$model" --eval --bind_to_mesh --white_background --port 60000)
  case " ${rest[*]-} " in
    # A shortened run shortens its interval, too, unless one is typed.
    *" --scale_schedule "*) ;;
    *) flags+=(--interval 60000) ;;
  esac
  flags+=(--preset "$preset" ${iterations:+--iterations "$iterations"} ${rest[@]+"${rest[@]}"})
  cd -- "$repository"
  ensure_environment requirements.txt
  if [ "$caller" != "$repository" ]; then
    cd -- "$caller"
    script="$repository/train.py"
  fi
  run "$PYTHON" "$script" "${flags[@]}"
  printf 'Pictures and metrics: %q %q -m %q\n' "$PYTHON" "${script%train.py}render.py" "$model"
}

ask() {  # puts a line from the terminal into $answer; -e: names of folders complete with the tabulator
  read -r -e -p "$1" answer || fail "no answer, so nothing is done"
}

menu() {
  local answer preset
  cat <<'END'
Which preset?
  1  Balanced
  2  Ultra-Efficient
  3  Quality-First
  4  Baseline
END
  while true; do
    ask "1 to 4 [1]: "
    case "$answer" in
      1|"") preset=balanced ;;
      2) preset=ultra ;;
      3) preset=quality ;;
      4) preset=baseline ;;
      *) echo "There is no '$answer' in the list."; continue ;;
    esac
    break
  done
  cd -- "$caller"
  while true; do
    ask "Folder of the data set${DATA_DIR:+ [$DATA_DIR]}: "
    answer="${answer:-${DATA_DIR:-}}"
    # The shell expands this in commands, but not in answers.
    case "$answer" in "~"|"~/"*) answer="${HOME:-}${answer#\~}" ;; esac
    [ ! -d "$answer" ] || break
    echo "There is no folder '$answer'."
  done
  train_preset "$preset" -s "$answer"
}

# ---- everything, on a procedural head ----

demo() {
  local root started=$SECONDS results measured
  root="$(absolute "${DEMO_DIR:-$repository/output/demo}")"
  read_flags "$@"
  [ -z "$data" ] || fail "the demo makes its own data; for yours: ./train_efficient.sh balanced -s $data"
  model="$(absolute "${model:-$root/model}")"
  # Python reads 4_000 as 4000; folders are named by the number.
  iterations="${iterations:-4000}" iterations="${iterations//_/}"
  ensure_environment requirements.txt
  if [ "$caller" != "$repository" ]; then
    printf '+ cd %q\n' "$repository"
  fi
  echo "== 1/4 A procedural head: a head model and a multi-view capture of it, in $root/data"
  run "$PYTHON" -m synthetic "$root/data"
  # Written last of all, it says up to where nothing is missing.
  measured="$(sed -n 's/^  "iterations": \([0-9]*\),$/\1/p' "$model/results.json" 2>/dev/null || true)"
  if [ "${measured:-0}" -ge "$iterations" ] 2>/dev/null &&
      [ -e "$model/point_cloud/iteration_$iterations/point_cloud.ply" ]; then
    echo "== 2/4 Training is skipped: $model/results.json says that it is done"
    echo "   (to train anew${*:+ with $*}: remove $model, or name another folder in DEMO_DIR)"
  else
    printf '== 2/4 Training (to watch it: %q -m tensorboard.main --logdir %q)\n' "$PYTHON" "$model"
    run "$PYTHON" train.py -s "$root/data" -m "$model" --eval --bind_to_mesh --white_background --preset balanced \
      --iterations "$iterations" --scale_schedule --densify_grad_threshold 0.001 --start_checkpoint auto \
      ${rest[@]+"${rest[@]}"}
  fi
  echo "== 3/4 Rendering the held-out camera and the held-out motion"
  run "$PYTHON" render.py -m "$model" --iteration "$iterations" --skip_train --render_mesh
  echo "== 4/4 Done in $(( (SECONDS - started) / 60 )) min $(( (SECONDS - started) % 60 )) s"
  results="*/ours_$iterations"
  find "$model" -type d -path "$results/renders" | sort |
    sed -e 's/^/Pictures:   /' -e 's/$/ (photographs: gt beside it)/'
  find "$model" -type f -path "$results/comparison.png" | sort | sed 's/^/Comparison: /'
  find "$model" -type f -path "$results/*.mp4" | sort | sed 's/^/Video:      /'
}

absolute() {  # a path as the caller means it
  case "$1" in
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$caller/$1" ;;
  esac
}

case " $* " in
  *" -h "*|*" --help "*) usage; exit 0 ;;
esac
case "${1:-}" in
  demo) shift; demo "$@" ;;
  balanced|ultra|quality|baseline) train_preset "$@" ;;
  help) usage ;;
  "")
    if [ ! -t 0 ]; then
      usage >&2
      exit 2
    fi
    menu ;;
  *) fail "unknown mode '$1'; the modes are: balanced, ultra, quality, baseline, demo" ;;
esac
