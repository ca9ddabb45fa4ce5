# Sourced by the scripts of this folder: paths, ports, and which services are external.
# shellcheck shell=bash
# shellcheck disable=SC2034  # The scripts that source this file use its variables.

# Each argument is a line.
say() { printf '%s\n' "$@"; }
warn() { printf '%s\n' "$@" >&2; }
fail() {
  warn "error: $*"
  exit 1
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
local_scripts=$repository/deploy/local

# The folder of one local system: data, secrets, logs, pids. Absolute, as services start in their own folders.
VIDLOG_LOCAL_DIR=$(realpath -m "${VIDLOG_LOCAL_DIR:-$repository/.local/run}")
VIDLOG_PORT_BASE=${VIDLOG_PORT_BASE:-19000}
export VIDLOG_LOCAL_DIR VIDLOG_PORT_BASE

if ! [[ $VIDLOG_PORT_BASE =~ ^[1-9][0-9]{3,4}$ ]] || ((VIDLOG_PORT_BASE > 65000)); then
  fail "VIDLOG_PORT_BASE=$VIDLOG_PORT_BASE is not a number from 1000 to 65000"
fi

# Where standalone listens: the API, and its health and metrics.
VIDLOG_LISTEN=${VIDLOG_LISTEN:-127.0.0.1:8080}
VIDLOG_OPS_LISTEN=${VIDLOG_OPS_LISTEN:-127.0.0.1:18081}
export VIDLOG_LISTEN VIDLOG_OPS_LISTEN

# Which build of the programs runs: release, or debug, as tests do.
VIDLOG_BUILD=${VIDLOG_BUILD:-release}
export VIDLOG_BUILD
programs=$repository/target/$VIDLOG_BUILD

# The folders of cargo and of Debian's database servers: neither is always on the path.
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin

# All local systems share one copy of the jars.
kafka_home=$repository/.local/kafka

secrets_dir=$VIDLOG_LOCAL_DIR/secrets
logs_dir=$VIDLOG_LOCAL_DIR/log
pids_dir=$VIDLOG_LOCAL_DIR/pid

# Offsets from the base. With the bases used here no sum is a default port, which a service of the machine may use.
kafka_port=$((VIDLOG_PORT_BASE + 92))
kafka_controller_port=$((VIDLOG_PORT_BASE + 93))
kafka_fault_port=$((VIDLOG_PORT_BASE + 94))
kafka_fault_proxy_port=$((VIDLOG_PORT_BASE + 95))
mysql_port=$((VIDLOG_PORT_BASE + 306))
redis_port=$((VIDLOG_PORT_BASE + 379))

# The address at which this machine reaches a listener on $1, which may be a wildcard.
reachable() {
  local host=${1%:*} port=${1##*:}
  case $host in
    '' | 0.0.0.0 | '[::]') host=127.0.0.1 ;;
  esac
  printf '%s:%s' "$host" "$port"
}

# Whether a component is external: its address is in the environment, so it is neither installed nor started here. Our own
# address, in the environment after `eval "$(deploy/local/stack env)"`, does not count.
is_external() {
  case $1 in
    kafka) [[ -n ${VIDLOG_KAFKA_BROKERS:-} && $VIDLOG_KAFKA_BROKERS != "127.0.0.1:$kafka_port" ]] ;;
    mysql) [[ -n ${VIDLOG_MYSQL_URL:-} && $VIDLOG_MYSQL_URL != *"@127.0.0.1:$mysql_port/"* ]] ;;
    redis) [[ -n ${VIDLOG_REDIS_URL:-} && $VIDLOG_REDIS_URL != "redis://127.0.0.1:$redis_port/" ]] ;;
    *) fail "unknown component: $1" ;;
  esac
}
