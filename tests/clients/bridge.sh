# clients/shell for test_every_method.py: a line {method, params} comes in, a line {result} or {error} goes out.
set -euo pipefail
. "$CLIENTS/shell/zstor.sh"

read_a_stream() { # {key}
  local stream
  stream=$(zstor_call object.read_stream "$1" | jq .stream) || return
  zstor_next | jq -r .params.value_b64 | base64 -d | jq -Rsc .
  zstor_call stream.ack stream:="$stream" seq:=0 >/dev/null
}

leave_a_stream() { # {key}
  local stream
  stream=$(zstor_call object.read_stream "$1" | jq .stream) || return
  zstor_next | jq -r .params.value_b64 | base64 -d | jq -Rsc '.[:1]'
  zstor_call stream.abort stream:="$stream" >/dev/null
}

zstor_open
while IFS= read -r line; do
  method=$(jq -r .method <<<"$line")
  params=$(jq -c .params <<<"$line")
  case $method in
    'read a stream') set -- read_a_stream "$params" ;;
    'leave a stream') set -- leave_a_stream "$params" ;;
    *) set -- zstor_call "$method" "$params" ;;
  esac
  if "$@" >"$RESULT" ; then jq -c '{result: .}' "$RESULT"; else jq -c '{error: (.data + {code: .code})}' <<<"$ZSTOR_ERROR"; fi
done
zstor_close
