#!/usr/bin/env bash
# On a worker: run a command, keep its process id, output and exit code in runs/RUN.
#
#   worker.sh RUN COMMAND...
#
# SIGTERM goes on to the command, which saves its state. With BUCKET set the log is
# copied there every LOG_SECONDS (60) and at the end.
set -uo pipefail

name="$1"
shift
folder="${RUNS:-$HOME/runs}/$name"
mkdir -p "$folder"
if [ -f "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; then
  echo "worker.sh: $name already runs here as process $(cat "$folder/pid")" >&2
  exit 3
fi
rm -f "$folder/code"

# A process group of its own, so that stop.sh can end all of it and nothing else.
setsid "$@" >>"$folder/log" 2>&1 &
child=$!
echo "$child" >"$folder/pid"
stopped=0
trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM INT

upload() {
  [ -n "${BUCKET:-}" ] || return 0
  gcloud storage cp --quiet "$folder/log" "$BUCKET/logs/$name/$(hostname).log" >/dev/null 2>&1
}
while sleep "${LOG_SECONDS:-60}"; do upload; done &
uploader=$!

wait "$child"
code=$?
# A signal ends `wait` before the command has ended.
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done
if [ "$stopped" = 1 ]; then
  wait "$child" 2>/dev/null
  last=$?
  [ "$last" = 127 ] || code=$last
fi
kill "$uploader" 2>/dev/null
echo "$code" >"$folder/code"
rm -f "$folder/pid"
upload
exit "$code"
