# zstor.sh - functions for zstor-local over socat and jq, for bash. Copy it and source it:
#
#   . zstor.sh
#   zstor_call object.stat '{"key": "notes"}'            # every method; the result as JSON
#   zstor_call object.list prefix=photos/ limit:=10      # NAME=TEXT or NAME:=JSON instead of a JSON object
#   zstor_put notes.txt notes                            # files by path
#   zstor_get notes copy.txt
#   tar c docs | zstor_write docs.tar                    # pipes
#   zstor_read docs.tar | tar t
#
# Every function answers 0, or 1 with the daemon's error on stderr (and in ZSTOR_ERROR as JSON), 2 without a daemon.
# ZSTOR_TIMEOUT: seconds that one call may take (3600); the daemon gives it up then, unless it has begun to commit.
#
# socat leaves 0.5 s after its input has ended unless -t says otherwise, and a reply that came later would be lost without a word.
# So -t is larger than any deadline here, and a reply that is missing is an error.

zstor_socket() { # where the daemon listens: the same order that daemon and command try
  if [ -n "${ZSTOR_SOCKET:-}" ]; then
    printf '%s\n' "$ZSTOR_SOCKET"
  elif [ "${XDG_RUNTIME_DIR:0:1}" = / ]; then
    printf '%s\n' "$XDG_RUNTIME_DIR/zstor/zstor.sock"
  else
    printf '%s\n' "${XDG_STATE_HOME:-$HOME/.local/state}/zstor/run/zstor.sock"
  fi
}

_zstor_params() { # the parameters as one JSON object
  if [ $# -eq 0 ]; then
    echo '{}'
  elif [ $# -eq 1 ] && [ "${1:0:1}" = '{' ]; then
    printf '%s\n' "$1"
  else
    local word arguments=()
    for word; do
      case ${word%%=*} in
        *:) arguments+=(--argjson "${word%%:=*}" "${word#*:=}") ;;
        *) arguments+=(--arg "${word%%=*}" "${word#*=}") ;;
      esac
    done
    jq -nc "${arguments[@]}" '$ARGS.named'
  fi
}

_zstor_request() { # METHOD PARAMS ID: the line to send
  # The parameters come through a pipe: an argument holds 128 KiB at most.
  printf '%s' "$2" | jq -c --arg method "$1" --argjson id "${3:-1}" --argjson seconds "${ZSTOR_TIMEOUT:-3600}" \
    '{jsonrpc: "2.0", id: $id, method: $method, params: (. + {_meta: ((._meta // {}) + {timeoutSeconds: $seconds})})}'
}

_zstor_result() { # the result of a reply on stdin, or its error
  local reply
  reply=$(cat)
  if [ -z "$reply" ]; then
    _zstor_failed '{"message": "the daemon closed the connection before it answered", "data": {"type": "no_daemon"}}'
    return 2
  elif printf '%s' "$reply" | jq -e 'has("error")' >/dev/null; then
    _zstor_failed "$(printf '%s' "$reply" | jq -c .error)"
    return 1
  fi
  printf '%s' "$reply" | jq -c .result
}

_zstor_failed() { # an error, on stderr and in ZSTOR_ERROR
  ZSTOR_ERROR=$1
  printf '%s' "$1" | jq -r '"zstor: \([.message, .data.detail // empty] | join(": "))\(.data.hint // "" | if . == "" then . else " (\(.))" end)"' >&2 ||
    printf 'zstor: %s\n' "$1" >&2
}

_zstor_connected() { # whether somebody listens
  local socket
  socket=$(zstor_socket)
  if [ ! -S "$socket" ]; then
    _zstor_failed "$(jq -nc --arg socket "$socket" '{message: "no daemon at \($socket)", data: {type: "no_daemon", hint: "zstor daemon"}}')"
    return 2
  fi
}

zstor_call() { # METHOD [JSON | NAME=TEXT | NAME:=JSON]...
  local method=$1 request wait=$((${ZSTOR_TIMEOUT:-3600} + 60))
  shift
  request=$(_zstor_params "$@") || return 1
  request=$(_zstor_request "$method" "$request") || return 1
  _zstor_connected || return 2
  # Not in a pipeline: ZSTOR_ERROR must reach the caller.
  _zstor_result < <(printf '%s\n' "$request" | socat -t "$wait" - "UNIX-CONNECT:$(zstor_socket)")
}

zstor_put() { # FILE [KEY] [NAME=TEXT | NAME:=JSON]...: the daemon reads the file; prints the metadata
  local file=$1 key=${2:-${1##*/}} params
  shift $(($# > 2 ? 2 : $#))
  params=$(_zstor_params "$@" | jq -c --arg key "$key" --arg path "$(realpath -- "$file")" '. + {key: $key, path: $path}') || return 1
  zstor_call object.write_file "$params" | jq -c .metadata
  return "${PIPESTATUS[0]}"
}

zstor_get() { # KEY [FILE] [NAME=TEXT | NAME:=JSON]...: the daemon writes the file, whole or not at all
  local key=$1 file=${2:-${1##*/}} params
  shift $(($# > 2 ? 2 : $#))
  params=$(_zstor_params "$@" | jq -c --arg key "$key" --arg path "$(realpath -m -- "$file")" '. + {key: $key, path: $path}') || return 1
  zstor_call object.read_file "$params" >/dev/null
}

zstor_read() { # KEY [NAME=TEXT | NAME:=JSON]...: the object to stdout, in ranges of one version
  local key=$1 params version size offset=0 piece=$((3 * 1024 * 1024))
  shift
  params=$(_zstor_params "$@" | jq -c --arg key "$key" '. + {key: $key}') || return 1
  local stat
  stat=$(zstor_call object.stat "$params") || return $?
  size=$(printf '%s' "$stat" | jq '(.metadata // .).size')
  params=$(printf '%s\n%s' "$params" "$stat" | jq -sc '(.[0] | del(.key)) + {metadata: (.[1].metadata // .[1])}')
  while [ "$offset" -lt "$size" ]; do
    zstor_call object.read "$(printf '%s' "$params" | jq -c ". + {offset: $offset, length: $piece}")" |
      jq -r .value_b64 | base64 -d || return 1
    [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
    offset=$((offset + piece))
  done
}

zstor_write() { # KEY [NAME=TEXT | NAME:=JSON]...: stdin becomes the object; prints the metadata
  local key=$1 params stream seq=0 value status=0 in out
  shift
  params=$(_zstor_params "$@" | jq -c --arg key "$key" '. + {key: $key}') || return 1
  _zstor_connected || return 2
  # One connection for the whole stream. Its other end closing, for whatever reason, leaves nothing behind.
  coproc ZSTOR_STREAM { socat -t 60 - "UNIX-CONNECT:$(zstor_socket)"; }
  in=${ZSTOR_STREAM[0]} out=${ZSTOR_STREAM[1]}
  _zstor_turn "$in" "$out" object.write_stream "$params" || status=$?
  stream=$(printf '%s' "${ZSTOR_TURN:-}" | jq -r .stream)
  while [ $status -eq 0 ]; do
    value=$(head -c 524288 | base64 -w 0)
    [ -n "$value" ] || break
    params=$(printf '{"stream": "%s", "seq": %d, "value_b64": "%s"}' "$stream" "$seq" "$value")
    _zstor_turn "$in" "$out" stream.write "$params" || status=$?
    seq=$((seq + 1))
  done
  [ $status -ne 0 ] || _zstor_turn "$in" "$out" stream.close "{\"stream\": \"$stream\"}" || status=$?
  exec {out}>&-
  wait "$ZSTOR_STREAM_PID" 2>/dev/null
  [ $status -ne 0 ] || printf '%s' "$ZSTOR_TURN" | jq -c .metadata
  return $status
}

_zstor_turn() { # IN OUT METHOD PARAMS: a call on a connection that stays; its result in ZSTOR_TURN
  local reply=
  _zstor_request "$3" "$4" >&"$2" 2>/dev/null
  IFS= read -r reply <&"$1"
  ZSTOR_TURN=$(_zstor_result <<<"$reply" 2>/dev/null) || { local status=$?; _zstor_result <<<"$reply" >/dev/null; return $status; }
}
