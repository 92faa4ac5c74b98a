#!/usr/bin/env bash
# Request a TPU slice and wait until it is there. Safe to repeat.
#
#   tpu_setup/create.sh [--dry-run]
#
# Reads PROJECT, ZONE, NAME, TYPE, RUNTIME and SPOT; see env.example. The request waits
# in Google's queue; interrupt whenever you like and run this again later.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
need PROJECT ZONE NAME TYPE RUNTIME

request() {
  local spot=()
  [ "$SPOT" = 1 ] && spot=(--spot)
  # shellcheck disable=SC2046
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" $(where) \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${spot[@]}"
}

if [ "$DRY_RUN" = 1 ]; then
  request
  # shellcheck disable=SC2046
  run gcloud compute tpus queued-resources describe "$NAME" $(where) '--format=value(state.state)'
  exit 0
fi

found="$(state)"
if [ "$found" = NONE ]; then
  request
  found="$(state)"
fi
while true; do
  case "$found" in
    ACTIVE)
      say "$NAME ($TYPE) is active"
      exit 0
      ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      fail "the request for $NAME is $found; remove it with delete.sh, then create again"
      ;;
    NONE) fail "the request for $NAME has vanished; see the Cloud console for its reason" ;;
  esac
  say "$NAME is $found; looking again in $POLL_SECONDS s"
  sleep "$POLL_SECONDS"
  found="$(state)"
done
