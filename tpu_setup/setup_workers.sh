#!/usr/bin/env bash
# Install Python, JAX for TPU and this package on all workers. Run sync.sh first.
#
#   tpu_setup/setup_workers.sh [--dry-run]
#
# JAX gets the version that pyproject.toml allows. MOUNT, a command line, is run last: it
# mounts the folder that all workers share. Safe to repeat.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/common.sh"

arguments none "$@"
need PROJECT ZONE NAME

on_workers all "command -v $PYTHON || { sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get update -q && sudo apt-get install -y -q $PYTHON $PYTHON-venv; }"
on_workers all "cd lt_mia_jax && $PYTHON -m venv .venv && .venv/bin/pip install --quiet --upgrade pip && .venv/bin/pip install --quiet -e '.[tpu]' && .venv/bin/lt-mia --version"
[ -z "${MOUNT:-}" ] || on_workers all "$MOUNT"
