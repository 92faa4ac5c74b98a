#!/usr/bin/env bash
# Submit an lt-mia command to a GKE cluster with TPU nodes, through the Cluster Toolkit.
#
#   tpu_setup/gke/submit.sh [--dry-run] RUN lt-mia ARGUMENTS...
#
# Reads IMAGE (built from gke/Dockerfile and pushed), COMPUTE_TYPE (ct6e-hightpu-4t) and
# TOPOLOGY (4x4). `gcluster` and a cluster are made once; see its documentation.
set -euo pipefail
# shellcheck source=tpu_setup/common.sh
source "$(dirname "$0")/../common.sh"

arguments command "$@"
[ -n "${IMAGE:-}" ] || fail "not set: IMAGE; docker build -f tpu_setup/gke/Dockerfile, push, and name it"
[ "$DRY_RUN" = 1 ] || command -v gcluster >/dev/null || fail "gcluster is not installed; see https://github.com/GoogleCloudPlatform/cluster-toolkit"
line="$(printf '%q ' "${command[@]}")"
run gcluster job submit --build-context "$HERE/.." --base-image "$IMAGE" \
  --command "${line% }" --name "$name" \
  --compute-type "${COMPUTE_TYPE:-ct6e-hightpu-4t}" --topology "${TOPOLOGY:-4x4}"
