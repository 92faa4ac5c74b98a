#!/usr/bin/env bash
# Show the end of a run's log.
#
#   tpu_setup/logs.sh [--dry-run] [--worker N|all] [--follow] RUN
#
# --follow needs one worker (default 0): output of all arrives only at the end.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

worker=0 follow="" name=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --follow) follow="-F" ;;
    --worker) worker="${2:-}" && shift ;;
    -h | --help) usage ;;
    -*) fail "unknown argument '$1'; see --help" ;;
    *) run_name "$1" && name="$1" ;;
  esac
  shift
done
[ -n "$name" ] || fail "expected the name of a run; status.sh lists them"
[[ "$worker" =~ ^([0-9]+|all)$ ]] || fail "--worker '$worker': expected a number or all"
[ -z "$follow" ] || [ "$worker" != all ] || fail "--follow needs one worker; give --worker N"
load_env
need PROJECT ZONE NAME
on_workers "$worker" "tail -n 100 $follow runs/$name/log"
