# Sourced by `seed`, `demo` and `test-documents`: requests to the API as a client sends them, and videos to upload.
# shellcheck shell=bash
# shellcheck disable=SC2154  # base_address is set by the script that sources this.

# request METHOD PATH NAME=VALUE…: sends every parameter in the query, also of a POST. Sets $answer to the body and $asked to
# the request.
request() {
  local method=$1 path=$2 parameter
  asked="$1 /douyin/$2/"
  shift 2
  local -a query=()
  for parameter in "$@"; do query+=(--data-urlencode "$parameter"); done
  answer=$(curl --silent --show-error --max-time 20 --get --request "$method" "${query[@]}" "$base_address/douyin/$path/") ||
    fail "$asked got no answer from $base_address; does it run? (make run)"
  require_json
}

get() { request GET "$@"; }
post() { request POST "$@"; }

# upload TOKEN TITLE FILE
upload() {
  asked="POST /douyin/publish/action/"
  answer=$(curl --silent --show-error --max-time 20 --form-string "token=$1" --form-string "title=$2" \
    --form "data=@$3;type=video/mp4" "$base_address/douyin/publish/action/") ||
    fail "$asked got no answer from $base_address"
  require_json
}

require_json() { jq --exit-status 'has("status_code")' <<<"$answer" >/dev/null 2>&1 || fail "$asked: not a JSON answer: ${answer:-empty}"; }

# field FILTER: a value of the last answer.
field() { jq --raw-output "$1" <<<"$answer"; }

# wait_until SECONDS CONDITION COMMAND…: repeats the command until it succeeds.
wait_until() {
  local seconds=$1 what=$2
  shift 2
  local deadline=$((SECONDS + seconds))
  until "$@"; do
    ((SECONDS < deadline)) || fail "$what did not happen within $seconds s; the last answer: $answer"
    sleep 0.2
  done
}

# make_video FILE PICTURE HERTZ SECONDS: portrait, H.264 and AAC, some hundred kilobytes.
make_video() {
  ffmpeg -nostdin -v error -y -f lavfi -i "$2" -f lavfi -i "sine=frequency=$3" -t "$4" \
    -vf scale=360:640:flags=neighbor,format=yuv420p -c:v libx264 -preset veryfast -crf 30 \
    -c:a aac -b:a 64k -ac 1 -movflags +faststart "$1"
}
