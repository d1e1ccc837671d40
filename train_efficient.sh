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

  ./train_efficient.sh demo [any train.py flag]
      everything on a procedural head: makes the environment, the data set,
      an avatar, pictures and a table of metrics; run again, it continues
      where it was stopped

DEMO_DIR (default: output/demo in the repository) is where the demo puts its
data and results.
END
}

run() {  # shows the exact command, then runs it
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

demo() {
  local root="${DEMO_DIR:-$repository/output/demo}" started=$SECONDS
  case "$root" in
    /*) ;;
    *) root="$caller/$root" ;;
  esac
  ensure_environment requirements.txt
  if [ "$caller" != "$repository" ]; then
    printf '+ cd %q\n' "$repository"
  fi
  echo "== 1/4 A procedural head: a head model and a multi-view capture of it, in $root/data"
  run "$PYTHON" -m scene.synthetic "$root/data"
  if [ -e "$root/model/results.json" ]; then
    echo "== 2/4 Training is skipped: $root/model/results.json says that it is done"
    echo "   (to train anew${*:+ with $*}: remove $root/model, or name another folder in DEMO_DIR)"
  else
    printf '== 2/4 Training (to watch it: %q -m tensorboard.main --logdir %q)\n' "$PYTHON" "$root/model"
    run "$PYTHON" train.py -s "$root/data" -m "$root/model" --eval --bind_to_mesh --white_background \
      --iterations 4000 --scale_schedule --densify_grad_threshold 0.001 --start_checkpoint auto "$@"
  fi
  echo "== 3/4 Rendering the held-out camera and the held-out motion"
  run "$PYTHON" render.py -m "$root/model" --skip_train --render_mesh
  echo "== 4/4 Done in $(( (SECONDS - started) / 60 )) min $(( (SECONDS - started) % 60 )) s"
  find "$root/model" -type d -name renders | sort | sed -e 's/^/Pictures:   /' -e 's/$/ (photographs: gt beside it)/'
  find "$root/model" -type f -name comparison.png | sort | sed 's/^/Comparison: /'
  find "$root/model" -type f -name '*.mp4' | sort | sed 's/^/Video:      /'
}

case "${1:-}" in
  demo)
    shift
    case " $* " in
      *" -h "*|*" --help "*) usage ;;
      *) demo "$@" ;;
    esac ;;
  -h|--help|help|"") usage ;;
  *) echo "error: unknown mode '$1'; the modes are: demo" >&2; exit 2 ;;
esac
