# Sourced: private background processes. Each has a log, and a pid file of two lines: the pid, and an argument of its command
# line, which distinguishes it from a later process with the same pid.
# shellcheck shell=bash
# shellcheck disable=SC2154  # The folders are set in settings.sh.

# hold_lock FILE: holds the lock until this script ends; waits while another script holds it.
hold_lock() {
  mkdir -p "$(dirname "$1")"
  exec 9>"$1"
  flock 9
}

# start_process NAME ARGUMENT COMMAND…
start_process() {
  local name=$1 argument=$2
  shift 2
  mkdir -p "$logs_dir" "$pids_dir"
  printf -- '--- starting %s at %s\n' "$name" "$(date --iso-8601=seconds)" >>"$logs_dir/$name.log"
  # In a new session, so that neither Ctrl-C nor a closing terminal ends it, and without the lock's descriptor.
  setsid "$@" >>"$logs_dir/$name.log" 2>&1 </dev/null 9>&- &
  printf '%s\n%s\n' "$!" "$argument" >"$pids_dir/$name"
}

process_pid() { head -n 1 "$pids_dir/$1" 2>/dev/null; }

# Whether NAME runs: the process of its pid file exists and has its argument.
is_running() {
  local pid argument
  { read -r pid && read -r argument; } 2>/dev/null <"$pids_dir/$1" || return 1
  grep -zqxF -- "$argument" "/proc/$pid/cmdline" 2>/dev/null
}

# Whether a process has ended or is a zombie. An exiting process loses its command line before its ports.
has_ended() {
  local stat
  { read -r stat </proc/"$1"/stat; } 2>/dev/null || return 0
  [[ ${stat##*) } == [ZX]* ]]
}

# wait_until_ready NAME SECONDS CHECK…: repeats the check until it succeeds; on a timeout, prints the log and fails.
wait_until_ready() {
  local name=$1 seconds=$2
  shift 2
  local deadline=$((SECONDS + seconds))
  until "$@"; do
    if has_ended "$(process_pid "$name")"; then fail_with_log "$name" "$name exited during its start"; fi
    if ((SECONDS >= deadline)); then
      stop_process "$name" 5
      fail_with_log "$name" "$name was not ready within $seconds s"
    fi
    sleep 0.1
  done
}

fail_with_log() {
  local name=$1
  shift
  warn "The last lines of $logs_dir/$name.log:"
  # Only lines of this start; `head` may break the pipe early.
  { tac "$logs_dir/$name.log" | sed '/^--- /q' | head -n 30 | tac | sed 's/^/    /' >&2; } || true
  fail "$*"
}

# stop_process NAME SECONDS: sends SIGTERM, waits, then SIGKILL.
stop_process() {
  local name=$1 seconds=$2 pid
  if is_running "$name"; then
    pid=$(process_pid "$name")
    kill -TERM "$pid" 2>/dev/null || true
    if ! wait_for_end "$pid" "$seconds"; then
      warn "killing $name: it did not end within $seconds s of SIGTERM"
      kill -KILL "$pid" 2>/dev/null || true
      wait_for_end "$pid" "$seconds" || fail "$name (pid $pid) did not end after SIGKILL"
    fi
  fi
  rm -f "$pids_dir/$name"
}

wait_for_end() {
  local pid=$1 deadline=$((SECONDS + $2))
  until has_ended "$pid"; do
    if ((SECONDS >= deadline)); then return 1; fi
    sleep 0.05
  done
}

accepts_connections() {
  local host=${1%:*} port=${1##*:}
  (exec 3<>"/dev/tcp/${host//[\[\]]/}/$port") 2>/dev/null
}

# The processes that listen on a port, as far as this user may see them.
listener_on() { ss -Hltnp "sport = :$1" 2>/dev/null || true; }
