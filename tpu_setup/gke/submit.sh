#!/usr/bin/env bash
# Submit an lt-mia command to a GKE cluster with TPU nodes, through the Cluster Toolkit.
#
#   tpu_setup/gke/submit.sh [--dry-run] RUN lt-mia ARGUMENTS...
#
# Reads COMPUTE_TYPE (ct6e-hightpu-4t) and TOPOLOGY (4x4). `gcluster` and a cluster are
# made once; see its documentation.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/../common.sh"

while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    -h | --help) usage ;;
    -*) fail "unknown argument '$1'; options come before RUN, see --help" ;;
    *) break ;;
  esac
  shift
done
[ $# -ge 2 ] || fail "expected RUN and a command; see --help"
name="$1"
shift
run_name "$name"
load_env
[ "$DRY_RUN" = 1 ] || command -v gcluster >/dev/null || fail "gcluster is not installed; see https://github.com/GoogleCloudPlatform/cluster-toolkit"
command="$(printf '%q ' "$@")"
run gcluster job submit --build-context "$HERE/.." --base-image python:3.12-slim \
  --command "${command% }" --name "$name" \
  --compute-type "${COMPUTE_TYPE:-ct6e-hightpu-4t}" --topology "${TOPOLOGY:-4x4}"
