#!/usr/bin/env bash
# The kernel tests under AddressSanitizer and UBSan: ./tests/sanitize.sh [pytest arguments].
#
# Builds the kernels with both into a temporary folder and preloads the sanitizers' runtime, for Python itself is
# not built with it. Minutes, not seconds. Needs GCC. Exits with non-zero when a test fails or anything is found.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
tests/run.sh --version  # makes the environment where needed, before anything is preloaded

export CXX=${CXX:-g++} NATIVE_CACHE
NATIVE_CACHE=$(mktemp -d)
trap 'rm -rf "$NATIVE_CACHE"' EXIT
# -O1 after our -O3 wins. Stop at the first finding, so that none is only a line in the output.
export NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
# Leaks: Python and PyTorch never free much of what they hold at the end, so they would drown ours.
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=0:halt_on_error=1:strict_string_checks=1"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"

fail() {
  echo "sanitize.sh: $*" >&2
  exit 1
}

runtime=$("$CXX" -print-file-name=libasan.so)
[ -f "$runtime" ] || fail "$CXX has no libasan.so; install GCC's sanitizer runtime"
# libstdc++ too: the sanitizer looks for the C++ exceptions' entry points at its own start, and Python has none.
preload="$runtime $("$CXX" -print-file-name=libstdc++.so.6)"

# A finding must be fatal, or this script proves nothing: one write past the end of an array.
broken=$NATIVE_CACHE/broken.so
# shellcheck disable=SC2086
"$CXX" $NATIVE_FLAGS -fPIC -shared -x c++ -o "$broken" - <<'CODE'
extern "C" int broken(int n) { int *a = new int[n]; a[n] = 1; int r = a[n]; delete[] a; return r; }
CODE
if found=$(LD_PRELOAD=$preload python3 -c "import ctypes; ctypes.CDLL('$broken').broken(4)" 2>&1) ||
    [[ $found != *heap-buffer-overflow* ]]; then
  fail "the sanitizer does not find a planted error: $found"
fi
rm "$broken"

tests=(tests/*/test_{native_fuzz,rasterizer_contract,losses,flame,rig,optimizer,densification,visibility}.py
    tests/innovations/test_{region_adaptive_loss,color_calibration,amp,progressive_resolution}.py)
# Out of memory is not for the sanitizer: its allocator ends the process instead of throwing.
LD_PRELOAD=$preload tests/run.sh -p no:cacheprovider -k "not out_of_memory" "${tests[@]}" "$@"

[ -n "$(find "$NATIVE_CACHE" -name '*.so')" ] || fail "the kernels were not built, nothing was checked"
echo "sanitize.sh: nothing found"
