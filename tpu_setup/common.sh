# shellcheck shell=bash
# What all scripts share. They source it after `set -euo pipefail`.

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
DRY_RUN=0
# Calls of gcloud in a row that may fail before a script gives up.
TRIES="${TRIES:-5}"
POLL_SECONDS="${POLL_SECONDS:-30}"

# shellcheck source=tpu_setup/gce.sh
source "$HERE/gce.sh"

fail() {
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

say() { echo "$(basename "$0"): $*" >&2; }

# The comment block below a script's first line is its help.
usage() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
  exit 0
}

# arguments KIND ARGUMENTS...: reads the command line, then the settings.
#
# KIND is "none", "maybe" (a run's name, or nothing), "run" (a run's name) or "command" (a
# run's name, then a command). Sets DRY_RUN, `name`, the array `command`, and a variable
# for each flag in SWITCHES ("--yes": yes=1) and VALUES ("--worker 0": worker=0).
arguments() {
  local kind="$1"
  shift
  name="" command=()
  while [ $# -gt 0 ]; do
    if [ "$1" = --dry-run ]; then
      DRY_RUN=1
    elif [ "$1" = -h ] || [ "$1" = --help ]; then
      usage
    elif [[ " ${SWITCHES:-} " == *" $1 "* ]]; then
      declare -g "${1#--}=1"
    elif [[ " ${VALUES:-} " == *" $1 "* ]]; then
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      declare -g "${1#--}=$2"
      shift
    elif [[ "$1" == -* ]] || [ "$kind" = none ] || [ -n "$name" ]; then
      fail "unknown argument '$1'; see --help"
    else
      run_name "$1"
      name="$1"
      if [ "$kind" = command ]; then
        shift
        command=("$@")
        break
      fi
    fi
    shift
  done
  if [ "$kind" = command ]; then
    [ ${#command[@]} -gt 0 ] || fail "expected RUN and a command; see --help"
  elif [ "$kind" = run ]; then
    [ -n "$name" ] || fail "expected the name of a run; status.sh lists them"
  fi
  load_env
}

load_env() {
  local file="${POD_ENV:-$HERE/env}" line name
  if [ -f "$file" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
      line="${line%%#*}"
      line="${line%"${line##*[![:space:]]}"}"
      [ -z "$line" ] && continue
      name="${line%%=*}"
      [[ "$line" == *=* && "$name" =~ ^[A-Z_]+$ ]] || fail "$file: expected NAME=value, found '$line'"
      # Not evaluated: a value is a string, whatever it holds.
      [ -n "${!name+set}" ] || declare -g "$name=${line#*=}"
    done <"$file"
  fi
  : "${SPOT:=1}" "${PYTHON:=python3.11}" "${API:=tpu-vm}"
  [[ "$API" =~ ^(tpu-vm|gce)$ ]] || fail "API '$API': expected tpu-vm or gce"
}

# The settings that say what slice to make.
shape() {
  if [ "$API" = gce ]; then echo MACHINE TOPOLOGY HOSTS IMAGE_FAMILY; else echo TYPE RUNTIME; fi
}

need() {
  local missing=() name
  for name in "$@"; do [ -n "${!name:-}" ] || missing+=("$name"); done
  [ ${#missing[@]} = 0 ] || fail "not set: ${missing[*]}; fill in ${POD_ENV:-$HERE/env} (see env.example)"
  [ "$DRY_RUN" = 1 ] || command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
}

# With --dry-run the command is printed, quoted so that it can be pasted, and not run.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

where() { echo "--zone=$ZONE --project=$PROJECT"; }

# on_workers all|N COMMAND: run a command line on workers.
on_workers() {
  # shellcheck disable=SC2046,SC2153
  if [ "$API" = gce ]; then
    gce_on_workers "$@"
  else
    run gcloud compute tpus tpu-vm ssh "$NAME" $(where) --worker="$1" --command="$2"
  fi
}

describe() {
  # shellcheck disable=SC2046
  if [ "$API" = gce ]; then
    gce_members instanceStatus
  else
    run gcloud compute tpus queued-resources describe "$NAME" $(where) '--format=value(state.state)'
  fi
}

# The state of the request: ACTIVE, WAITING_FOR_RESOURCES, ...; NONE when there is none.
# Fails, with gcloud's message, when gcloud cannot tell; assign what it says before a
# test, which would hide that.
state() {
  local said errors failed=0
  [ "$DRY_RUN" = 0 ] || { describe && return; }
  errors="$(mktemp)"
  said="$(describe 2>"$errors")" || failed=1
  if [ "$failed" = 1 ] && grep -qiE "not[_ ]found" "$errors"; then
    said=NONE failed=0
  elif [ "$failed" = 1 ]; then
    cat "$errors" >&2
  elif [ "$API" = gce ]; then
    said="$(gce_state "$said")"
  fi
  rm -f "$errors"
  [ "$failed" = 0 ] && echo "$said"
}

# The same, asked up to TRIES times while gcloud fails.
patient_state() {
  local try
  for try in $(seq "$TRIES"); do
    state && return
    say "no state of $NAME (try $try of $TRIES); asking again in $POLL_SECONDS s"
    sleep "$POLL_SECONDS"
  done
  return 1
}

run_name() {
  [[ "$1" =~ ^[A-Za-z0-9._-]+$ ]] || fail "run name '$1': use letters, digits, '.', '_' and '-'"
}
