#!/usr/bin/env bash
# Runs the tests: ./tests/run.sh [pytest arguments]. Makes .venv when needed.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
source utils/environment.sh
ensure_environment requirements.txt tests/requirements.txt
exec "$PYTHON" -m pytest "$@"
