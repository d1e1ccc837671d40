#!/usr/bin/env bash
# The short way in.
#
#   ./train_efficient.sh demo [any train.py flag]
#       everything on a procedural head: makes the environment, the data set,
#       an avatar, pictures and a table of metrics
#
# DEMO_DIR (default output/demo) is where the demo puts its data and results.
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh

usage() {
  sed -n '2,/^set -/p' "$0" | sed -e '/^set -/d' -e 's/^# \{0,1\}//'
}

run() {  # shows the exact command, then runs it
  echo "+ $*"
  "$@"
}

demo() {
  local root="${DEMO_DIR:-output/demo}" started=$SECONDS
  ensure_environment requirements.txt
  echo "== 1/4 A procedural head: a head model and a multi-view capture of it, in $root/data"
  run "$PYTHON" -m scene.synthetic "$root/data"
  echo "== 2/4 Training (TensorBoard: $PYTHON -m tensorboard.main --logdir $root/model)"
  run "$PYTHON" train.py -s "$root/data" -m "$root/model" --eval --bind_to_mesh --white_background \
    --iterations 3000 --scale_schedule --densify_grad_threshold 0.001 "$@"
  echo "== 3/4 Rendering the held-out camera and the held-out motion"
  run "$PYTHON" render.py -m "$root/model" --skip_train --render_mesh
  echo "== 4/4 Done in $(( (SECONDS - started) / 60 )) min $(( (SECONDS - started) % 60 )) s"
  echo "Pictures (novel view):        $root/model/val/ours_*/renders/, ground truth in gt/ beside it"
  echo "Pictures (held-out motion):   $root/model/test/ours_*/renders/"
  find "$root/model" -name '*.mp4' | sort | sed 's/^/Video: /'
}

case "${1:-}" in
  demo) shift; demo "$@" ;;
  -h|--help|help|"") usage ;;
  *) echo "error: unknown mode '$1'; the modes are: demo" >&2; exit 2 ;;
esac
