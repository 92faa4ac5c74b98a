#!/usr/bin/env bash
# Delete the slice and its request. What is in the bucket stays.
#
#   tpu_setup/delete.sh [--dry-run] [--yes]
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

yes=0
SWITCHES="--yes"
arguments none "$@"
need PROJECT ZONE NAME
if [ "$DRY_RUN" = 0 ] && [ "$(state)" = NONE ]; then
  say "there is no request named $NAME in $ZONE"
  exit 0
fi
if [ "$DRY_RUN" = 0 ] && [ "$yes" = 0 ]; then
  [ -t 0 ] || fail "add --yes to delete $NAME without being asked"
  read -r -p "Delete $NAME in $ZONE and everything on its disks? [y/N] " answer
  [ "$answer" = y ] || exit 1
fi
# shellcheck disable=SC2046
run gcloud compute tpus queued-resources delete "$NAME" $(where) --force --quiet
