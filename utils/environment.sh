# Sourced by train_efficient.sh and tests/run.sh, in the repository root:
#
#   source utils/environment.sh; ensure_environment requirements.txt [more.txt ...]
#
# sets PYTHON to an interpreter that has what the requirements files list: the
# active one, else that of .venv, which is made, completed or repaired when
# needed. Nobody's own environment is changed. Ends the script (status 2) when
# there is no such interpreter and none can be made.

ensure_environment() {
  local missing
  # An environment that somebody activated on purpose comes first, then ours.
  if ! _venv_is_active && missing="$(python -m utils.environment "$@" 2>/dev/null)"; then
    PYTHON=python
  else
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && ! _venv_is_active; then
      echo "== The active environment is left as it is (${missing:-it cannot be used}); .venv is used instead"
    fi
    PYTHON="$PWD/.venv/bin/python"
    if ! missing="$("$PYTHON" -m utils.environment "$@" 2>/dev/null)"; then
      _make_venv
      _fill_venv "$@"
    fi
    # As activating it would: PyTorch calls `ninja` by name to compile gsplat.
    export PATH="$PWD/.venv/bin:$PATH"
  fi
  _prepare_gpu
}

_venv_is_active() {
  [ -n "${VIRTUAL_ENV:-}" ] && [ "$VIRTUAL_ENV" -ef .venv ]
}

# Whether .venv/bin/python is that of .venv: without its pyvenv.cfg it would be the system's.
_is_venv() {
  "$PYTHON" -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, ".venv"))' >/dev/null 2>&1
}

_pip_works() {
  "$PYTHON" -m pip --version >/dev/null 2>&1
}

_has_nvidia_driver() {
  nvidia-smi >/dev/null 2>&1
}

# Makes .venv, unless there is one with a working pip.
_make_venv() {
  # One without pip was stopped half-way, or made by a tool that leaves pip out.
  if _is_venv && { _pip_works || { "$PYTHON" -m ensurepip >/dev/null 2>&1 && _pip_works; }; }; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "error: .venv holds $("$PYTHON" --version), and 3.11 or newer is needed; remove the folder .venv" >&2
      exit 2
    fi
    return 0
  fi
  local candidate
  for candidate in python3.12 python3.11 python3.13 python3 python; do
    # Debian packs ensurepip, without which venv fails half-way, apart from Python.
    if ! "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      continue
    fi
    echo "== Creating .venv with $("$candidate" --version)"
    rm -rf .venv
    if "$candidate" -m venv .venv && _pip_works; then
      return 0
    fi
    rm -rf .venv
  done
  echo "error: no Python 3.11 or newer was found that can make .venv with pip in it" \
    "(on Debian and Ubuntu: install python3-venv)" >&2
  exit 2
}

# Installs into .venv what it lacks; a run that was stopped here is continued by the next.
_fill_venv() {
  local missing file files=()
  if missing="$("$PYTHON" -m utils.environment "$@")"; then
    return 0
  fi
  echo "== Installing into .venv, once ($missing)"
  case "$missing" in
    *" torch"*)
      if ! _has_nvidia_driver; then
        echo "   PyTorch from the package index may be a CUDA build of several GB; a CPU build of the version in" \
          "requirements.txt is used when it is already in .venv, or in an active environment with all the rest"
      fi ;;
  esac
  for file in "$@"; do
    files+=(-r "$file")
  done
  if ! "$PYTHON" -m pip install --disable-pip-version-check --no-input "${files[@]}"; then
    echo "error: installing $* into .venv failed; see the lines above (running this again continues)" >&2
    exit 2
  fi
  if ! missing="$("$PYTHON" -m utils.environment "$@")"; then
    echo "error: .venv is still not complete ($missing); remove the folder .venv and run this again" >&2
    exit 2
  fi
  _has_nvidia_driver || echo "== No NVIDIA driver found: the native CPU kernels will be used"
}

# With an NVIDIA driver: sees to gsplat, the default rasterizer on a GPU.
_prepare_gpu() {
  local missing
  _has_nvidia_driver || return 0
  if [ "$PYTHON" = python ]; then
    missing="$(python -m utils.environment requirements-cuda.txt)" ||
      echo "== NVIDIA driver found; the active environment lacks something for it ($missing):" \
        "python -m pip install -r requirements-cuda.txt"
    return 0
  fi
  if ! "$PYTHON" -m utils.environment requirements-cuda.txt >/dev/null; then
    echo "== NVIDIA driver found: installing gsplat (requirements-cuda.txt) into .venv"
    if ! "$PYTHON" -m pip install --disable-pip-version-check --no-input -r requirements-cuda.txt; then
      echo "== gsplat could not be installed (see above); the next run tries again," \
        "training will say which backend it uses"
      return 0
    fi
    echo "== Installed gsplat; it compiles its kernels on first use"
  fi
  # The places where PyTorch looks for it.
  if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}/bin/nvcc" ]; then
    echo "== gsplat will need the CUDA toolkit to compile its kernels: no nvcc on PATH, nor in CUDA_HOME"
  fi
}
