#!/usr/bin/env bash
# Start a command on all workers, in the background.
#
#   tpu_setup/run.sh [--dry-run] RUN COMMAND...
#   tpu_setup/run.sh extract-1 .venv/bin/lt-mia extract --target ... --out gs://...
#
# It runs in the code's folder; logs.sh RUN shows its output, stop.sh RUN ends it. A run
# that is still going is left alone, and a finished one is started again: the commands
# of lt-mia continue where they stopped.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments command "$@"
need PROJECT ZONE NAME

line="$(printf '%q ' "${command[@]}")"
on_workers all "cd lt_mia_jax && BUCKET=${BUCKET:-} setsid nohup bash tpu_setup/worker.sh $name ${line% } > /dev/null 2>&1 < /dev/null &"
