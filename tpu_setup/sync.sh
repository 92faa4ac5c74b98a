#!/usr/bin/env bash
# Send the committed code to all workers, by way of the bucket.
#
#   tpu_setup/sync.sh [--dry-run]
#
# Only what is committed is sent, so that a run can be traced to a commit.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
need PROJECT ZONE NAME BUCKET

cd "$HERE/.."
commit="$(git rev-parse --short HEAD)"
[ -z "$(git status --porcelain)" ] || say "uncommitted changes are not sent; the workers get $commit"
archive="code-$commit.tar.gz"
run git archive --format=tar.gz --output="/tmp/$archive" HEAD
run gcloud storage cp "/tmp/$archive" "$BUCKET/code/$archive"
on_workers all "mkdir -p lt_mia_jax && gcloud storage cp $BUCKET/code/$archive /tmp/$archive && tar -xzf /tmp/$archive -C lt_mia_jax && echo $commit > lt_mia_jax/COMMIT"
