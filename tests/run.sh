#!/usr/bin/env bash
# Runs ruff, mypy and the tests, or pytest alone: ./tests/run.sh [pytest arguments]. Makes .venv when needed.
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit
source utils/environment.sh -m scripts.run_tests "$@"
