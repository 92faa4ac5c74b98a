#!/usr/bin/env bash
# End a run on all workers: SIGTERM, so that it saves; after STOP_SECONDS (60) SIGKILL.
#
#   tpu_setup/stop.sh [--dry-run] RUN
#
# Only the processes of that run are touched. Those that a shell leaves behind are told
# once it has gone: a process that nobody waits for would hold the chips.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments run "$@"
need PROJECT ZONE NAME
# worker.sh starts the command as the leader (\$p) of a process group (-\$p).
on_workers all "p=\$(cat runs/$name/pid 2>/dev/null) || exit 0; kill -TERM \$p 2>/dev/null; told=; for _ in \$(seq ${STOP_SECONDS:-60}); do kill -0 -- -\$p 2>/dev/null || exit 0; [ -n \"\$told\" ] || kill -0 \$p 2>/dev/null || { told=1; kill -TERM -- -\$p 2>/dev/null; }; sleep 1; done; kill -KILL -- -\$p 2>/dev/null || true"
