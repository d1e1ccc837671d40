# Sourced by train_efficient.sh and tests/run.sh: sets PYTHON to an interpreter
# that satisfies the given requirements files, making .venv when there is none.
#
#   source utils/environment.sh; ensure_environment requirements.txt [more.txt ...]

ensure_environment() {
  local candidate found=""
  # An environment that somebody activated on purpose comes first, then ours.
  for candidate in python .venv/bin/python; do
    if "$candidate" -m utils.environment "$@" >/dev/null 2>&1; then
      PYTHON="$candidate"
      return 0
    fi
  done

  for candidate in python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      found="$candidate"
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "error: Python 3.11 or newer with its venv module is needed, and none was found" >&2
    exit 2
  fi

  if [ ! -x .venv/bin/python ]; then
    echo "== Creating .venv with $("$found" --version)"
    "$found" -m venv .venv || { echo "error: '$found -m venv .venv' failed (on Debian: install python3-venv)" >&2; exit 2; }
  fi
  PYTHON=.venv/bin/python
  local file
  for file in "$@"; do
    echo "== Installing $file into .venv (once; PyTorch is the large one)"
    "$PYTHON" -m pip install --disable-pip-version-check --progress-bar on -r "$file" \
      || { echo "error: installing $file failed; see the lines above" >&2; exit 2; }
  done
  # Only into an environment that we made: nobody's own set-up is changed unasked.
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    if "$PYTHON" -m pip install --disable-pip-version-check -r requirements-cuda.txt; then
      echo "== NVIDIA driver found: installed gsplat (requirements-cuda.txt); it compiles its kernels on first use"
    else
      echo "== NVIDIA driver found, but gsplat could not be installed (see above); training will say which backend it uses"
    fi
  else
    echo "== No NVIDIA driver found: the native CPU kernels will be used"
  fi
}
