# Sourced: private background processes. Each has a log, and a pid file of two lines: the pid, and an argument of its command
# line by which it is told from a stranger that got the same pid later.
# shellcheck shell=bash

# start_process NAME ARGUMENT COMMAND…
start_process() {
  local name=$1 argument=$2
  shift 2
  mkdir -p "$logs_dir" "$pids_dir"
  printf -- '--- %s is started at %s\n' "$name" "$(date --iso-8601=seconds)" >>"$logs_dir/$name.log"
  # A session of its own: neither Ctrl-C nor a terminal that closes reaches it. The lock of `stack` must not be inherited.
  setsid "$@" >>"$logs_dir/$name.log" 2>&1 </dev/null 9>&- &
  printf '%s\n%s\n' "$!" "$argument" >"$pids_dir/$name"
}

process_pid() { head -n 1 "$pids_dir/$1" 2>/dev/null; }

# Whether NAME runs, and is the process that its pid file means.
is_running() {
  local pid argument
  { read -r pid && read -r argument; } 2>/dev/null <"$pids_dir/$1" || return 1
  grep -zqxF -- "$argument" "/proc/$pid/cmdline" 2>/dev/null
}

# Whether a child that was just started is still there; it may not have become its command yet. A zombie has no exe.
has_not_ended() { [[ -e /proc/$(process_pid "$1")/exe ]]; }

# wait_until_ready NAME SECONDS QUESTION…: asks until the answer is yes; says why when that does not come.
wait_until_ready() {
  local name=$1 seconds=$2
  shift 2
  local deadline=$((SECONDS + seconds))
  until "$@"; do
    has_not_ended "$name" || fail_with_log "$name" "$name ended while it was starting"
    if ((SECONDS >= deadline)); then
      stop_process "$name" 5
      fail_with_log "$name" "$name did not answer within $seconds s"
    fi
    sleep 0.1
  done
}

fail_with_log() {
  local name=$1
  shift
  warn "The last lines of $logs_dir/$name.log:"
  tail -n 30 "$logs_dir/$name.log" | sed 's/^/    /' >&2
  fail "$*"
}

request_stop() {
  if is_running "$1"; then kill -TERM "$(process_pid "$1")" 2>/dev/null || true; fi
}

# stop_process NAME SECONDS: asks, waits, and only then kills.
stop_process() {
  local name=$1 seconds=$2
  local deadline=$((SECONDS + seconds))
  request_stop "$name"
  while is_running "$name"; do
    if ((SECONDS >= deadline)); then
      warn "$name did not end within $seconds s of SIGTERM and is killed"
      kill -KILL "$(process_pid "$name")" 2>/dev/null || true
      deadline=$((SECONDS + seconds))
    fi
    sleep 0.05
  done
  rm -f "$pids_dir/$name"
}

accepts_connections() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }
