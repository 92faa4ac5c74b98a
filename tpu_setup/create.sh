#!/usr/bin/env bash
# Request a TPU slice and wait until it is there. Safe to repeat.
#
#   tpu_setup/create.sh [--dry-run]
#
# Reads PROJECT, ZONE, NAME, SPOT and what its API takes; see env.example. The request
# waits in Google's queue; interrupt whenever you like and run this again later.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
# shellcheck disable=SC2046
need PROJECT ZONE NAME $(shape)

request() {
  local spot=()
  [ "$SPOT" = 1 ] && spot=(--spot)
  # shellcheck disable=SC2046
  if [ "$API" = gce ]; then
    gce_request
  else
    run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" $(where) \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${spot[@]}"
  fi
}

if [ "$DRY_RUN" = 1 ]; then
  request
  state
  exit 0
fi

unknown="the state of $NAME is not known; run this again when gcloud works"
found="$(state)" || fail "$unknown"
if [ "$found" = NONE ]; then
  request
  found="$(patient_state)" || fail "$unknown"
fi
while true; do
  case "$found" in
    ACTIVE)
      say "$NAME is active"
      exit 0
      ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      fail "the request for $NAME is $found; remove it with delete.sh, then create again"
      ;;
    NONE) fail "the request for $NAME has vanished; see the Cloud console for its reason" ;;
  esac
  say "$NAME is $found; looking again in $POLL_SECONDS s"
  sleep "$POLL_SECONDS"
  found="$(patient_state)" || fail "$unknown"
done
