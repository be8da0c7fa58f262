# From here on the script is the same for every launch.
set -euo pipefail

MAIN=$$ STATE='' PHASE='' SINCE='' WATCHDOG=''
RETRY_S=${UPS_RETRY_S:-10} POLL_S=${UPS_POLL_S:-5} AGAIN_S=${UPS_AGAIN_S:-300}

say() { printf '%s onstart: %s\n' "$(date -u +%T)" "$*" || true; }

# Vast puts CONTAINER_ID into every instance, and CONTAINER_API_KEY, which may stop it:
# https://docs.vast.ai/guides/instances/docker-environment
# `vastai` ends with 0 even where the API refuses; only its words tell (vastai 1.9.1). Where it is
# missing or fails, the same request is made by hand.
stop_instance() {
  local id=${CONTAINER_ID:-${VAST_CONTAINERLABEL:-}} answer
  id=${id#C.}
  [[ -z ${CONTAINER_API_KEY:-} ]] || export VAST_API_KEY=$CONTAINER_API_KEY
  answer=$(timeout 60 vastai stop instance "$id" 2>&1) || true
  [[ $answer != *"stopping instance"* ]] || return 0
  answer=$(timeout 60 python3 -c '
import os, sys, urllib.request as web
url = os.environ.get("VAST_URL") or "https://console.vast.ai"
request = web.Request(f"{url}/api/v0/instances/{sys.argv[1]}/", b"{\"state\":\"stopped\"}")
request.method = "PUT"
request.add_header("Authorization", "Bearer " + os.environ.get("VAST_API_KEY", ""))
request.add_header("Content-Type", "application/json")
print(web.urlopen(request, timeout=30).read().decode())' "$id" 2>&1) || true
  [[ ! $answer =~ '"success": '?true ]] || return 0
  say "the stop was not accepted: ${answer##*$'\n'}"
  return 1
}

stop_for_good() {
  say "stopping the instance: $1"
  while :; do
    until stop_instance; do sleep "$RETRY_S"; done
    say 'the stop was accepted'
    sleep "$AGAIN_S" # whoever is still here asks again
  done
}

# Runs in a session of its own, so that it outlives whatever happens to the script.
watchdog() {
  local now begin='' moved='' beat='' seen why='' job
  until [[ $why ]]; do
    read -r now _ </proc/uptime # unlike the time of day, it is never set
    now=${now%.*}
    seen=$(stat -c %y "$STATE/beat" 2>&1) || true
    [[ $seen == "$beat" ]] || { beat=$seen moved=$now; }
    if [[ -e $STATE/ended ]]; then
      why="the script ended with $(<"$STATE/ended")"
    elif ! kill -0 "$MAIN" 2>/dev/null || grep -q '^State:.Z' "/proc/$MAIN/status"; then
      why='the script died'
    elif ((now - ${begin:=$now} > MAX_TOTAL_S)); then
      why="not done after $MAX_TOTAL_S s"
    elif ((now - moved > MAX_STALL_S)); then
      why="no progress for $MAX_STALL_S s"
    else
      sleep "$POLL_S"
    fi
  done
  echo "$why" >"$STATE/why"
  # The job gets a moment to end its run: nobody else would tell the Prefect server.
  if job=$(cat "$STATE/job" 2>/dev/null) && kill -TERM "$job" 2>/dev/null; then
    timeout 30 tail -f --pid="$job" /dev/null
  fi
  stop_for_good "$why"
}

finish() {
  local code=$?
  set +e
  trap '' HUP INT TERM PIPE # whoever reads the log may be gone
  say "ended with exit code $code${PHASE:+ in phase $PHASE}"
  echo "exit code $code" >"$STATE/ended"
  # Not one look: a watchdog that was just killed is still there for a moment.
  until ((!AUTO_SHUTDOWN)) || [[ -e $STATE/why ]]; do
    kill -0 "$WATCHDOG" 2>/dev/null ||
      stop_for_good "the script ended with exit code $code, and its watchdog is gone"
    sleep 0.1
  done
  exit "$code"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

STATE=$(mktemp -d)
if ((AUTO_SHUTDOWN)); then
  export MAIN STATE RETRY_S POLL_S AGAIN_S MAX_TOTAL_S MAX_STALL_S
  functions=$(declare -f say stop_instance stop_for_good watchdog)
  setsid bash -c "$functions; trap '' HUP INT PIPE; watchdog" </dev/null &
  WATCHDOG=$!
  echo "$WATCHDOG" >"$STATE/watchdog"
fi

phase() { # one ends, the next begins; Unix times in seconds
  local now
  now=$(date +%s.%N)
  [[ -z $PHASE ]] || echo "$PHASE $SINCE $now" >>"$STATE/provision"
  PHASE=$1 SINCE=$now
  : >"$STATE/beat"
  say "$PHASE"
}

phase clone
mkdir -p -- "$MOUNT" "$WORK/src"
exec > >(trap '' HUP INT TERM && exec tee -a -- "$MOUNT/onstart.log") 2>&1
export HOME=${HOME:-$WORK} GIT_TERMINAL_PROMPT=0
if ! command -v git >/dev/null; then
  apt-get update -qq
  apt-get install -yqq --no-install-recommends ca-certificates git
fi
cd -- "$WORK/src"
[[ -d .git ]] || git init -q
if ! git fetch -q --depth 1 -- "$REPO" "$COMMIT"; then
  say "the repository does not give commit $COMMIT alone: fetching all branches and tags"
  git fetch -q --force -- "$REPO" '+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'
fi
git checkout -q --force --detach "$COMMIT"
# shellcheck source=ups/vast/provision.sh
source ups/vast/provision.sh
