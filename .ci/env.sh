#!/usr/bin/env bash
# Make or reuse a virtual environment of the project:  .ci/env.sh FOLDER EXTRAS
# It is made anew when the Python changes or the project moves, and brought up to date when
# pyproject.toml, the extras or the versions in $PIP_CONSTRAINT, a file that pip follows, change.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 extras=$2
python=${PYTHON:-python3}
fail() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

command -v "$python" >/dev/null ||
    fail "no '$python' found; install Python 3.10 or newer, or set PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, '$python' is $("$python" -V 2>&1); set PYTHON=/path/to/python3.10"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "'$python' cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"

# Of two makes at once the second waits. Python locks the open file: flock is not on every system.
exec 9>>"$folder.lock"
"$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true

place="$PWD $("$python" -V)"
state="$place $(cat pyproject.toml ${PIP_CONSTRAINT:-} | cksum)"
stamp=$folder/.installed # the state, then a line for each extra that is there
there=
if [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$state" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    there=$(sed 1d "$stamp")
fi
# With those that are there, so that the versions suit them all.
wanted=$(printf '%s\n' $there ${extras//,/ } | sort -u)
if [ -n "$there" ] && [ "$wanted" = "$there" ]; then
    exit 0
fi

# An environment of another Python or place, or one that was never finished, is of no use.
if [ "$(cat "$folder/.place" 2>/dev/null)" != "$place" ] || [ ! -f "$stamp" ] ||
    ! "$folder/bin/python" -m pip -V >/dev/null 2>&1; then
    rm -rf "$folder"
else
    : >"$stamp" # until this is done nothing is known of it
fi
free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
if [ ! -d "$folder" ] && [ "$free_mb" -lt 8000 ]; then
    fail "the environment takes about 7 GB (torch with CUDA), but only $free_mb MB are free here; make room and run the same command again"
fi

echo "Setting up $folder with [$extras]: up to a few minutes the first time (torch is about 5 GB)."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() { "$@" >>"$log" 2>&1; }
pip() { run "$folder/bin/python" -m pip install --disable-pip-version-check "$@"; }
# uv does in half a minute what takes pip three, and links files that two environments share. It does
# not read pip's settings: it is given those of the environment, and where it fails, pip tries.
uv() {
    run env ${PIP_EXTRA_INDEX_URL:+"UV_INDEX=$PIP_EXTRA_INDEX_URL" UV_INDEX_STRATEGY=unsafe-best-match} \
        "$folder/bin/uv" pip install --python "$folder/bin/python" \
        ${PIP_INDEX_URL:+--default-index "$PIP_INDEX_URL"} \
        ${PIP_CONSTRAINT:+--constraint "$PIP_CONSTRAINT"} ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} "$@"
}
make_venv() { [ -d "$folder" ] || run "$python" -m venv "$folder"; }
project=".[$(tr '\n' , <<<"$wanted" | sed 's/,$//')]"
# Of two failures the last is looked at below, and shown.
install() { pip --upgrade pip uv && uv -e "$project" || { : >"$log" && pip -e "$project"; }; }
if ! { make_venv && echo "$place" >"$folder/.place" && install; }; then
    tail -n 15 "$log" >&2
    if grep -qiE 'no space left|errno 28' "$log"; then
        fail "the disk filled up; make room (about 7 GB) and run the same command again"
    elif grep -E 'WARNING|ERROR' "$log" | grep -qiE 'NewConnection|establish a new connection|name resolution|timed out|ProxyError|Max retries|unreachable|No matching distribution'; then
        fail "the packages could not be fetched; is there a network, and does pip reach its index? Then run the same command again"
    fi
    fail "the installation failed, see above"
fi
# yapf, which mmengine imports, writes a cache when it is first imported; two test workers that begin
# together would read half of one.
case $extras in
    *mmpretrain*|*onedl*) run "$folder/bin/python" -c 'import mmengine.config' ||
        { tail -n 15 "$log" >&2; fail "mmengine cannot be imported, see above"; } ;;
esac
printf '%s\n' "$state" $wanted >"$stamp"
