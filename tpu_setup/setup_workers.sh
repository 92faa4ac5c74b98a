#!/usr/bin/env bash
# Install Python, JAX for TPU and this package on all workers. Run sync.sh first.
#
#   tpu_setup/setup_workers.sh [--dry-run]
#
# JAX gets the version that pyproject.toml allows. Safe to repeat.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
need PROJECT ZONE NAME

# The first connection makes and spreads the key; to all workers at once it may fail.
connected=0
for _ in $(seq "$SSH_TRIES"); do
  if on_workers 0 true; then connected=1 && break; fi
  say "worker 0 does not answer yet"
  sleep "$POLL_SECONDS"
done
[ "$connected" = 1 ] || fail "worker 0 did not answer $SSH_TRIES times; see status.sh"

on_workers all "command -v $PYTHON || { sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get update -q && sudo apt-get install -y -q $PYTHON $PYTHON-venv; }"
on_workers all "cd lt_mia_jax && $PYTHON -m venv .venv && .venv/bin/pip install --quiet --upgrade pip && .venv/bin/pip install --quiet -e '.[tpu]' && .venv/bin/lt-mia --version"
