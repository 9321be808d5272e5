#!/usr/bin/env bash
# Make .venv from the pinned constraints. Idempotent: a stamp keyed by constraints.txt, pyproject.toml and this file makes a second run
# take a moment.
#
#   PYTHON=python3.12     interpreter to use (3.11 or newer)
#   TORCH_INDEX=URL       extra package index for torch, for another build than the default index has (see README.md)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.luthier-stamp
python=${PYTHON:-python3}

fail() {
  printf 'setup: %s\nFix: %s\n' "$1" "$2" >&2
  exit 1
}

want=$(cat constraints.txt pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$venv/bin/python" -c '' 2>/dev/null; then
  exit 0
fi

command -v "$python" >/dev/null || fail "$python not found" "install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; Luthier needs Python 3.11 or newer" "make setup PYTHON=/path/to/a/newer/python3"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  fail "$("$python" --version) comes without the venv module" "install it; on Debian and Ubuntu: apt-get install python3-venv"

if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
  rm -rf "$venv"
  echo "setup: making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
rm -f "$stamp"

pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check "$@" || {
    fail "pip could not install what constraints.txt pins (its own message is above)" \
      "check the network, the index (pip config list) and the free disk space (several GB with a CUDA build of torch), then run make setup again"
  }
}

# On a terminal pip shows its progress; elsewhere one line per part is enough.
quiet=--quiet
[ ! -t 1 ] || quiet=
started=$SECONDS
echo "setup: 1/3 torch (the longest download)"
pip install $quiet --constraint constraints.txt setuptools wheel ninja packaging numpy
pip install $quiet --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

# deepspeed is published as source only. Without isolation its build sees the torch above instead of fetching another one, and no
# op is compiled: Luthier never builds one at job start either.
echo "setup: 2/3 deepspeed"
DS_BUILD_OPS=0 pip install $quiet --constraint constraints.txt --no-build-isolation deepspeed

echo "setup: 3/3 luthier and the rest"
pip install $quiet --constraint constraints.txt --no-build-isolation --editable '.[all,dev]'

printf '%s\n' "$want" >"$stamp"
echo "setup: done in $((SECONDS - started)) s"
