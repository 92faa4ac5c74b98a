#!/usr/bin/env bash
# Send the committed code to all workers, by way of the bucket.
#
#   tpu_setup/sync.sh [--dry-run]
#
# Only what is committed is sent, with the commit's name in COMMIT, which run.json repeats.
# Code that was sent earlier is removed; .venv and other files stay.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
need PROJECT ZONE NAME BUCKET

cd "$HERE/.."
commit="$(git rev-parse HEAD)"
[ -z "$(git status --porcelain)" ] || say "uncommitted changes are not sent; the workers get $commit"
archive="code-$commit.tar.gz"
run git archive --format=tar.gz --output="/tmp/$archive" HEAD
run gcloud storage cp "/tmp/$archive" "$BUCKET/code/$archive"

# The first connection makes and spreads the key; to all workers at once it may fail.
connected=0
for _ in $(seq "$TRIES"); do
  if on_workers 0 true; then connected=1 && break; fi
  say "worker 0 does not answer yet"
  sleep "$POLL_SECONDS"
done
[ "$connected" = 1 ] || fail "worker 0 did not answer $TRIES times; see status.sh"

on_workers all "mkdir -p lt_mia_jax && gcloud storage cp $BUCKET/code/$archive /tmp/$archive && rm -rf lt_mia_jax/{COMMIT,lt_mia_jax,experiments,tests,tpu_setup} && tar -xzf /tmp/$archive -C lt_mia_jax && echo $commit > lt_mia_jax/COMMIT"
