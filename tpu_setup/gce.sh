# shellcheck shell=bash
# The slice as a group of Compute Engine instances, for API=gce. Sourced by common.sh.

# gce_except MESSAGE COMMAND...: run a command; an error that holds MESSAGE is none.
gce_except() {
  local message="$1" said
  shift
  [ "$DRY_RUN" = 0 ] || { run "$@" && return; }
  said="$("$@" 2>&1)" || grep -qi "$message" <<<"$said" || { echo "$said" >&2 && return 1; }
}

# The policy fixes the topology; the group starts all instances or none. What a request
# that was interrupted has left is used.
gce_request() {
  local region="${ZONE%-*}" spot=()
  [ "$SPOT" = 1 ] && spot=(--provisioning-model=SPOT --instance-termination-action=STOP)
  gce_except "already exists" gcloud compute resource-policies create workload-policy "$NAME" \
    --region="$region" --project="$PROJECT" --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
  gce_except "already exists" gcloud compute instance-templates create "$NAME" --project="$PROJECT" \
    --machine-type="$MACHINE" --image-family="$IMAGE_FAMILY" --image-project=ubuntu-os-accelerator-images \
    --boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform "${spot[@]}"
  # shellcheck disable=SC2046
  run gcloud compute instance-groups managed create "$NAME" $(where) --template="$NAME" --size="$HOSTS" \
    --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing \
    --workload-policy="projects/$PROJECT/regions/$region/resourcePolicies/$NAME"
}

gce_delete() {
  # shellcheck disable=SC2046
  gce_except "not found" gcloud compute instance-groups managed delete "$NAME" $(where) --quiet
  gce_except "not found" gcloud compute instance-templates delete "$NAME" --project="$PROJECT" --quiet
  gce_except "not found" gcloud compute resource-policies delete "$NAME" --region="${ZONE%-*}" \
    --project="$PROJECT" --quiet
}

# gce_members FIELD: that field of each instance.
gce_members() {
  # shellcheck disable=SC2046
  run gcloud compute instance-groups managed list-instances "$NAME" $(where) "--format=value($1)"
}

# gce_state STATUSES: the state of the slice, in the words of a queued request.
gce_state() {
  if grep -qE "STOP|SUSPEND|TERMINATED" <<<"$1"; then
    echo SUSPENDED
  elif [ "$(grep -cx RUNNING <<<"$1")" = "${HOSTS:-}" ]; then
    echo ACTIVE
  else
    echo WAITING_FOR_RESOURCES
  fi
}

# gce_on_workers all|N COMMAND: on all at once; one that fails is a failure.
gce_on_workers() {
  local hosts host pids=() pid failed=0
  hosts="$(gce_members 'instance.basename()' | sort)" || return 1
  if [ "$DRY_RUN" = 1 ]; then
    echo "$hosts"
    hosts=INSTANCE
  elif [ "$1" != all ]; then
    hosts="$(sed -n "$(($1 + 1))p" <<<"$hosts")"
  fi
  [ -n "$hosts" ] || { say "$NAME has no worker $1" && return 1; }
  if [ "$1" != all ]; then
    # In the foreground, where Ctrl-C ends it.
    gce_ssh "$hosts" "$2"
    return
  fi
  for host in $hosts; do
    gce_ssh "$host" "$2" </dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

gce_ssh() {
  # shellcheck disable=SC2046
  run gcloud compute ssh "$1" $(where) --command="$2"
}
