# Sourced in the repository root: becomes the first Python that can run our scripts, with the arguments given here.
# What it lacks beside the standard library is seen to by utils/environment.py.
for python in python python3 python3.12 python3.11 python3.13 .venv/bin/python; do
  if "$python" -S -E -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
    exec "$python" -u "$@"
  fi
done
echo "error: no Python 3.11 or newer was found (on Debian and Ubuntu: install python3-venv)" >&2
exit 2
