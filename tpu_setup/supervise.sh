#!/usr/bin/env bash
# Keep a run going until it succeeds: restart it, and make the slice anew when it is gone.
#
#   tpu_setup/supervise.sh [--dry-run] [--restarts N] RUN COMMAND...
#
# Run it on a machine that stays up. The command must continue where it stopped, as those
# of lt-mia do, and keep its state in a folder that all workers share and that outlives
# the slice; MOUNT (env.example) mounts it on a new one. A run that is going is taken over;
# how an earlier one ended does not count. Gives up after N restarts (default 20).
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

restarts=20
VALUES="--restarts"
arguments command "$@"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts '$restarts': expected a number"
# shellcheck disable=SC2046
need PROJECT ZONE NAME BUCKET $(shape)

prepare() {
  local flags=()
  [ "$DRY_RUN" = 1 ] && flags=(--dry-run)
  "$HERE/create.sh" "${flags[@]}" && "$HERE/sync.sh" "${flags[@]}" && "$HERE/setup_workers.sh" "${flags[@]}"
}

if [ "$DRY_RUN" = 1 ]; then
  prepare
  "$HERE/run.sh" --dry-run "$name" "${command[@]}"
  "$HERE/status.sh" --dry-run "$name"
  exit 0
fi

# mine: whether this supervisor has started or taken over the run. `no` after a start
# that failed: some workers may run it and others not, so their report is of no use.
started=0 silent=0 prepared=1 mine=unknown

# Whatever fails counts as a restart, so that this ends.
count() {
  [ "$started" -le "$restarts" ] || fail "$name failed after $restarts restarts; see logs.sh $name"
  started=$((started + 1))
}

# ready STATE: brings the slice from that state to one that can run the command.
ready() {
  case "$1" in
    ACTIVE) [ "$prepared" = 1 ] || prepare ;;
    FAILED | SUSPENDING | SUSPENDED)
      say "$NAME was taken away; making it anew"
      "$HERE/delete.sh" --yes && prepare
      ;;
    *) prepare ;;
  esac
}

while true; do
  if ! found="$(patient_state)" || ! ready "$found"; then
    count
    say "$NAME is not ready; trying again in $POLL_SECONDS s"
    prepared=0
    sleep "$POLL_SECONDS"
    continue
  fi
  prepared=1
  # That the workers do not answer once says nothing of the run.
  if report="$("$HERE/status.sh" "$name")"; then
    silent=0
  elif [ "$silent" -lt "$TRIES" ]; then
    silent=$((silent + 1))
    say "no answer from the workers; asking again in $POLL_SECONDS s"
    sleep "$POLL_SECONDS"
    continue
  else
    report="" silent=0
  fi
  states="$(grep -oE " $name: (running|lost|exit code [0-9]+):" <<<"$report" | sort -u || true)"
  # Where one process failed, the others wait for it in vain.
  if [ "$mine" != no ] && grep -q "running" <<<"$states" && ! grep -q "code [1-9]" <<<"$states"; then
    mine=yes
    sleep "$POLL_SECONDS"
    continue
  fi
  if [ "$mine" = yes ] && [ "$states" = " $name: exit code 0:" ]; then
    say "$name is done"
    exit 0
  fi
  if [ "$mine" = yes ] && grep -q "code 2:" <<<"$states"; then
    fail "$name: wrong input; see logs.sh $name"
  fi
  count
  say "start $started of $name"
  "$HERE/stop.sh" "$name" || true
  if "$HERE/run.sh" "$name" "${command[@]}"; then
    mine=yes
  else
    mine=no prepared=0
  fi
  sleep "$POLL_SECONDS"
done
