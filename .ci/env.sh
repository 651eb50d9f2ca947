#!/usr/bin/env bash
# Make or reuse a virtual environment:  .ci/env.sh FOLDER EXTRAS
# It is made anew only when pyproject.toml, the extras or the Python change.
set -euo pipefail
folder=$1 extras=$2
python=${PYTHON:-python3}
fail() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "no '$python' found; install Python 3.10 or newer, or set PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, '$python' is $("$python" -V 2>&1); set PYTHON=/path/to/python3.10"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "'$python' cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"

stamp=$folder/.installed
want=$({ cat pyproject.toml; echo "$extras"; "$python" -V; } | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [ ! -d "$folder" ] && [ "$free_mb" -lt 8000 ]; then
    fail "the environment takes about 7 GB (torch with CUDA), but only $free_mb MB are free here; make room and try again"
fi

echo "Setting up $folder with [$extras]: a few minutes the first time (torch is about 5 GB)."
rm -f "$stamp"
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
log=$folder/install.log
install() { "$folder/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1; }
if ! { install --upgrade pip && install -e ".[$extras]"; }; then
    tail -n 15 "$log" >&2
    grep -qiE 'no space left|errno 28' "$log" &&
        fail "the disk filled up; make room (about 7 GB) and run the same command again"
    grep -qiE 'connection|network|name resolution|timed out|could not find a version|proxy' "$log" &&
        fail "the packages could not be fetched; is there a network, and does pip reach its index? Whole log: $log"
    fail "the installation failed; whole log: $log"
fi
echo "$want" >"$stamp"
