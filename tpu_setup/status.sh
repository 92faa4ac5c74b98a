#!/usr/bin/env bash
# Show the slice, and what each worker is doing.
#
#   tpu_setup/status.sh [--dry-run] [RUN]
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments maybe "$@"
need PROJECT ZONE NAME

state
pattern="${name:-*}"
# One line a run: worker, name, running | exit code | lost, last line of its log.
on_workers all "cd runs 2>/dev/null || exit 0; for r in $pattern; do [ -d \"\$r\" ] || continue; if [ -f \"\$r/code\" ]; then s=\"exit code \$(cat \"\$r/code\")\"; elif kill -0 \"\$(cat \"\$r/pid\")\" 2>/dev/null; then s=running; else s=lost; fi; echo \"\$(hostname) \$r: \$s: \$(tail -n 1 \"\$r/log\")\"; done"
