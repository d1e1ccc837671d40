#!/usr/bin/env bash
# The kernel tests under AddressSanitizer and UBSan: ./tests/sanitize.sh [pytest arguments].
#
# Builds the native library with both into a temporary folder and preloads the
# sanitizers' runtime, for Python itself is not built with it. Minutes, not seconds.
# Needs GCC. Exits with non-zero when a test fails or anything is found.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
source utils/environment.sh
ensure_environment requirements.txt tests/requirements.txt

export CXX=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# -O1 after our -O3 wins. Stop at the first finding, so that none is only a line in the output.
export NATIVE_CACHE=$work
export NATIVE_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
# Leaks: Python and PyTorch never free much of what they hold at the end, so they would drown ours.
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=0:halt_on_error=1:strict_string_checks=1"
export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1"

runtime=$("$CXX" -print-file-name=libasan.so)
[ -f "$runtime" ] || { echo "sanitize.sh: $CXX has no libasan.so; install GCC's sanitizer runtime" >&2; exit 1; }
# libstdc++ too: the sanitizer looks for the C++ exceptions' entry points at its own start, and Python has none.
preload="$runtime $("$CXX" -print-file-name=libstdc++.so.6)"

# A finding must be fatal, or this script proves nothing: one write past the end of an array.
cat > "$work/broken.cpp" <<'CODE'
extern "C" int broken(int n) { int *a = new int[n]; a[n] = 1; int r = a[n]; delete[] a; return r; }
CODE
# shellcheck disable=SC2086
"$CXX" $NATIVE_FLAGS -fPIC -shared "$work/broken.cpp" -o "$work/broken.so"
if LD_PRELOAD=$preload "$PYTHON" -c "import ctypes; ctypes.CDLL('$work/broken.so').broken(4)" > "$work/log" 2>&1 \
    || ! grep -q heap-buffer-overflow "$work/log"; then
    echo "sanitize.sh: the sanitizer does not find a planted error:" >&2
    cat "$work/log" >&2
    exit 1
fi
rm "$work/broken.cpp" "$work/broken.so" "$work/log"

tests=(tests/*/test_{native_fuzz,rasterizer_contract,losses,flame,rig,optimizer,densification,visibility}.py
    tests/innovations/test_{region_adaptive_loss,color_calibration,amp,progressive_resolution}.py)
# Out of memory is not for the sanitizer: its allocator ends the process instead of throwing.
LD_PRELOAD=$preload "$PYTHON" -m pytest -p no:cacheprovider -k "not out_of_memory" "${tests[@]}" "$@"

libraries=$(find "$work" -name 'native-*.so' | wc -l)
[ "$libraries" -ge 1 ] || { echo "sanitize.sh: the native library was not built, nothing was checked" >&2; exit 1; }
echo "sanitize.sh: nothing found"
