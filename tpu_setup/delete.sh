#!/usr/bin/env bash
# Delete the slice and its request. What is in the bucket or on a shared folder stays.
#
#   tpu_setup/delete.sh [--dry-run] [--yes]
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

yes=0
SWITCHES="--yes"
arguments none "$@"
need PROJECT ZONE NAME
if [ "$DRY_RUN" = 0 ]; then
  found="$(state)" || fail "nothing is deleted: the state of $NAME is not known, it may go on and cost money"
  # With API=gce a policy and a template may be left of a request that was refused.
  if [ "$found" = NONE ] && [ "$API" = tpu-vm ]; then
    say "there is no request named $NAME in $ZONE"
    exit 0
  fi
fi
if [ "$DRY_RUN" = 0 ] && [ "$yes" = 0 ]; then
  [ -t 0 ] || fail "add --yes to delete $NAME without being asked"
  read -r -p "Delete $NAME in $ZONE and everything on its disks? [y/N] " answer
  [ "$answer" = y ] || exit 1
fi
# shellcheck disable=SC2046
if [ "$API" = gce ]; then
  gce_delete
else
  run gcloud compute tpus queued-resources delete "$NAME" $(where) --force --quiet
fi
