"""A stand-in for `gcloud`, and the settings and names of the scripts."""

from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "tpu_setup"


SETTINGS = {
    "PROJECT": "p",
    "ZONE": "z-1",
    "NAME": "slice",
    "TYPE": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "BUCKET": "gs://bucket/x",
    "IMAGE": "registry/image",
    "POLL_SECONDS": "0.05",
}


GCLOUD = """#!/usr/bin/env bash
# Answers `describe` and `ssh` with the lines of queues, one a call; records the rest.
# With WORKER=1 it is the worker too, and runs what is sent there.
echo "$@" >> "$FAKE/calls"
next() {
  head -n 1 "$FAKE/$1"
  [ "$(wc -l < "$FAKE/$1")" -gt 1 ] && sed -i 1d "$FAKE/$1"
}
answer() {
  line="$(next "$1")"
  [ "$line" = NONE ] && echo "ERROR: NOT_FOUND: 'slice' was not found" >&2 && exit 1
  [ "$line" = ERROR ] && echo "ERROR: Reauthentication failed" >&2 && exit 1
  tr '|' '\\n' <<< "$line"
}
# Each line of the queue is a call that fails, once.
pattern="$(head -n 1 "$FAKE/fails")"
if [ -n "$pattern" ] && [[ "$*" == *"$pattern"* ]]; then
  sed -i 1d "$FAKE/fails"
  echo "ERROR: already exists" >&2
  exit 7
fi
place() { echo "${1/#gs:\\/\\//$FAKE/gs/}"; }
case "$*" in
  storage\\ cp*)
    to="$(place "${@: -1}")"
    mkdir -p "$(dirname "$to")" && cp "$(place "${@: -2:1}")" "$to" ;;
  *queued-resources\\ describe* | *instanceStatus*) answer states ;;
  *"for r in"*) answer reports ;;
  *instance.basename*) printf 'w1\\nw0\\n' ;;
  *" ssh "*)
    all="$*"
    [ -z "${WORKER:-}" ] || { cd && exec bash -c "${all##*--command=}"; } ;;
  *queued-resources\\ create*) exit "${CREATED:-0}" ;;
esac
exit 0
"""


EVERY = {
    "create.sh": (),
    "sync.sh": (),
    "setup_workers.sh": (),
    "run.sh": ("name", ".venv/bin/lt-mia", "audit"),
    "status.sh": (),
    "logs.sh": ("name",),
    "stop.sh": ("name",),
    "supervise.sh": ("name", "command", "argument"),
    "delete.sh": (),
    "gke/submit.sh": ("name", "lt-mia", "audit"),
}
