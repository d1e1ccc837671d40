#!/usr/bin/env bash
# The short way in; ./train_efficient.sh help tells what it does.
caller="$PWD"
CDPATH='' cd -- "$(dirname -- "$0")" || exit
source utils/environment.sh -m scripts.train_efficient "$caller" "$@"
