#!/usr/bin/env bash
# Start a command on all workers, in the background.
#
#   tpu_setup/run.sh [--dry-run] RUN COMMAND...
#   tpu_setup/run.sh extract-1 .venv/bin/lt-mia extract --distributed auto --out /mnt/lt-mia/1 ...
#
# It runs in the code's folder; logs.sh RUN shows its output, stop.sh RUN ends it. What
# lt-mia reads and writes must lie in a folder that all workers share (README.md), not
# in gs://. A run that is still going is left alone, and a finished one is started again:
# the commands of lt-mia continue where they stopped.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments command "$@"
need PROJECT ZONE NAME

line="$(printf '%q ' "${command[@]}")"
start="BUCKET=${BUCKET:-} setsid nohup bash tpu_setup/worker.sh $name ${line% }"
# The `&` must cover only the command with the redirections: a shell in the background
# would hold the connection open until the run ends.
on_workers all "cd lt_mia_jax && [ -f tpu_setup/worker.sh ] || { echo \"\$(hostname): no code here; sync.sh sends it\" >&2; exit 1; }; $start >/dev/null 2>&1 </dev/null &"
