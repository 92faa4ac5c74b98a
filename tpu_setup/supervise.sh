#!/usr/bin/env bash
# Keep a run going until it succeeds: restart it, and make the slice anew when it is gone.
#
#   tpu_setup/supervise.sh [--dry-run] [--restarts N] RUN COMMAND...
#
# Run it on a machine that stays up. The command must continue where it stopped, as those
# of lt-mia do, and keep its state in the bucket. Gives up after N restarts (default 20).
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

restarts=20
VALUES="--restarts"
arguments command "$@"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts '$restarts': expected a number"
need PROJECT ZONE NAME TYPE RUNTIME BUCKET

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

started=0
while true; do
  case "$(state)" in
    ACTIVE) ;;
    FAILED | SUSPENDING | SUSPENDED)
      say "$NAME was taken away; making it anew"
      "$HERE/delete.sh" --yes
      prepare
      ;;
    *) prepare ;;
  esac
  # A worker that does not answer is asked again at the next turn.
  report="$("$HERE/status.sh" "$name" || true)"
  codes="$(grep -o ": exit code [0-9]*" <<<"$report" | sort -u || true)"
  # Where one process failed, the others wait for it in vain.
  if grep -q ": running: " <<<"$report" && ! grep -q "code [1-9]" <<<"$codes"; then
    sleep "$POLL_SECONDS"
    continue
  fi
  if [ "$codes" = ": exit code 0" ]; then
    say "$name is done"
    exit 0
  fi
  ! grep -qx ": exit code 2" <<<"$codes" || fail "$name: wrong input; see logs.sh $name"
  [ "$started" -le "$restarts" ] || fail "$name failed after $restarts restarts; see logs.sh $name"
  started=$((started + 1))
  say "start $started of $name"
  "$HERE/stop.sh" "$name" || true
  "$HERE/run.sh" "$name" "${command[@]}"
  sleep "$POLL_SECONDS"
done
