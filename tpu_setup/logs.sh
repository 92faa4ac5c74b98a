#!/usr/bin/env bash
# Show the end of a run's log.
#
#   tpu_setup/logs.sh [--dry-run] [--worker N|all] [--follow] RUN
#
# --follow needs one worker (default 0): output of all arrives only at the end.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

worker=0 follow=""
SWITCHES="--follow" VALUES="--worker"
arguments run "$@"
[[ "$worker" =~ ^([0-9]+|all)$ ]] || fail "--worker '$worker': expected a number or all"
[ -z "$follow" ] || [ "$worker" != all ] || fail "--follow needs one worker; give --worker N"
need PROJECT ZONE NAME
on_workers "$worker" "tail -n 100 ${follow:+-F} runs/$name/log"
