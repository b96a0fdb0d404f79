#!/bin/sh
# usage: tools/setup.sh [PYTHON]     makes or updates .venv with everything pinned in constraints.txt
set -e
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

if ! fits .venv/bin/python; then
    python=
    for candidate in "${1:-python3}" python3.12 python3.11 python3.10; do
        if fits "$candidate"; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "autolora needs Python 3.10, 3.11 or 3.12 and found none: install one, or name it: make run PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "Making .venv with $("$python" --version) ..."
    if ! "$python" -m venv --clear .venv; then
        echo "This Python can't make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)." >&2
        exit 1
    fi
fi

echo "Installing the pinned packages into .venv (once; about 2 minutes, more where torch comes with CUDA) ..."
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch torchvision -e '.[autoattack,mnist5k,tune,parallel,cluster,onnx,lab,dev]'
