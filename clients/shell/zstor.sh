# zstor.sh - functions for zstor-local over socat and jq, for bash. Copy it and source it:
#
#   . zstor.sh
#   zstor_call object.stat '{"key": "notes"}'            # every method; the result as JSON
#   zstor_call object.list prefix=photos/ limit:=10      # NAME=TEXT or NAME:=JSON instead of a JSON object, or beside it
#   zstor_put notes.txt notes                            # files by path
#   zstor_get notes copy.txt
#   tar c docs | zstor_write docs.tar                    # pipes
#   zstor_read docs.tar | tar t
#
# Every function answers 0, or 1 with the error on stderr (and in ZSTOR_ERROR as JSON), 2 without a daemon or without its answer.
# ZSTOR_TIMEOUT: seconds that one call may take (3600); the daemon gives it up then, unless it has begun to commit.
# ZSTOR_GRACE: seconds after that in which it must have said so (30); a daemon that is stopped holds nobody up for longer.
#
# socat leaves 0.5 s after its input has ended unless -t says otherwise, and a reply that came later would be lost without a word.
# So -t is larger than any deadline here, and a reply that is missing is an error. Values and parameters go through pipes and never
# into the arguments of a command: those can be seen by others, and hold 128 KiB at most.

zstor_socket() { # where the daemon listens: the same order that daemon and command try
  if [ -n "${ZSTOR_SOCKET:-}" ]; then
    printf '%s\n' "$ZSTOR_SOCKET"
  elif case ${XDG_RUNTIME_DIR:-} in /*) ;; *) false ;; esac; then
    printf '%s\n' "$XDG_RUNTIME_DIR/zstor/zstor.sock"
  else
    case ${XDG_STATE_HOME:-} in
      /*) printf '%s\n' "$XDG_STATE_HOME/zstor/run/zstor.sock" ;;
      *) printf '%s\n' "$HOME/.local/state/zstor/run/zstor.sock" ;;
    esac
  fi
}

zstor_call() { # METHOD [JSON | NAME=TEXT | NAME:=JSON]...: the result as JSON
  _zstor_ask .result "$@" || return
  printf '%s\n' "$_ZSTOR_RESULT"
}

zstor_put() { # FILE [KEY] [NAME=TEXT | NAME:=JSON]...: the daemon reads the file; prints the metadata
  local file=$1 key=${2:-${1##*/}}
  case $file in /*) ;; *) file=$PWD/$file ;; esac
  shift $(($# > 2 ? 2 : $#))
  _zstor_ask .result.metadata object.write_file "$@" "key=$key" "path=$file" || return
  printf '%s\n' "$_ZSTOR_RESULT"
}

zstor_get() { # KEY [FILE] [NAME=TEXT | NAME:=JSON]...: the daemon writes the file, whole or not at all
  local key=$1 file=${2:-${1##*/}}
  case $file in /*) ;; *) file=$PWD/$file ;; esac
  shift $(($# > 2 ? 2 : $#))
  _zstor_ask .result object.read_file "$@" "key=$key" "path=$file"
}

zstor_read() { # KEY [NAME=TEXT | NAME:=JSON]...: the object to stdout, in ranges of one version
  local key=$1 metadata size offset=0 piece=$((3 * 1024 * 1024))
  shift
  _zstor_ask .result.metadata object.stat "$@" "key=$key" || return
  metadata=$_ZSTOR_RESULT
  size=$(printf '%s' "$metadata" | jq .size)
  while [ "$offset" -lt "$size" ]; do
    _zstor_ask .result.value_b64 object.read "metadata:=$metadata" "offset:=$offset" "length:=$piece" || return
    printf '%s' "$_ZSTOR_RESULT" | tr -d '"' | base64 -d || return 1
    offset=$((offset + piece))
  done
}

zstor_write() { # KEY [NAME=TEXT | NAME:=JSON]...: stdin becomes the object; prints the metadata
  local key=$1 stream seq=0 value status=0 _ZSTOR_IN= _ZSTOR_OUT= _ZSTOR_PID=
  shift
  # One connection for the whole stream. Its end, for whatever reason, leaves nothing of what was not closed.
  zstor_open || return
  _zstor_ask .result.stream object.write_stream "$@" "key=$key" || status=$?
  stream=${_ZSTOR_RESULT-}
  while [ "$status" -eq 0 ]; do
    if ! value=$(set -o pipefail && head -c 524288 | base64 -w 0); then
      _zstor_failed '{"message": "the input cannot be read", "data": {"type": "input"}}'
      status=1
    elif [ -n "$value" ]; then
      _zstor_ask .result stream.write "stream:=$stream" "seq:=$seq" "value_b64=$value" || status=$?
      seq=$((seq + 1))
    else
      _zstor_ask .result.metadata stream.close "stream:=$stream" || status=$?
      break
    fi
  done
  zstor_close
  [ "$status" -eq 0 ] || return "$status"
  printf '%s\n' "$_ZSTOR_RESULT"
}

# One connection for many calls: it is faster, and the methods stream.* need it. zstor_call uses it until zstor_close.

zstor_open() {
  zstor_close
  _zstor_seconds && _zstor_connected || return
  local socat
  { coproc _ZSTOR_SOCAT { _zstor_socat 2>/dev/null; }; } 2>/dev/null
  _ZSTOR_PID=$!
  socat=("${_ZSTOR_SOCAT[@]}") # gone as soon as socat is
  [ ${#socat[@]} -eq 2 ] && { exec {_ZSTOR_IN}<&"${socat[0]}" {_ZSTOR_OUT}>&"${socat[1]}"; } 2>/dev/null || { _zstor_silence; return 2; }
  eval "exec ${socat[0]}<&- ${socat[1]}>&-"
}

zstor_close() { # what runs on the connection is cancelled
  [ -n "${_ZSTOR_PID:-}" ] || return 0
  [ -z "${_ZSTOR_IN:-}" ] || exec {_ZSTOR_IN}<&- {_ZSTOR_OUT}>&-
  kill "$_ZSTOR_PID" 2>/dev/null || :
  wait "$_ZSTOR_PID" 2>/dev/null || :
  _ZSTOR_PID= _ZSTOR_IN= _ZSTOR_OUT=
}

zstor_next() { # what the daemon tells on the open connection, such as stream.data: one line of JSON. zstor_call passes over it
  local line
  [ -n "${_ZSTOR_IN:-}" ] ||
    { _zstor_failed '{"message": "no connection is open", "data": {"type": "usage", "hint": "zstor_open makes one"}}'; return 1; }
  IFS= read -r -t "$(_zstor_patience)" -u "$_ZSTOR_IN" line || { _zstor_silence; return 2; }
  printf '%s\n' "$line"
}

# --- How a call goes ---

_zstor_ask() { # FILTER METHOD [JSON | NAME=TEXT | NAME:=JSON]...: what the filter makes of the reply, in _ZSTOR_RESULT
  local filter=$1 method=$2 id="$BASHPID-$RANDOM$RANDOM" request reply= error
  shift 2
  _ZSTOR_RESULT= ZSTOR_ERROR=
  _zstor_seconds || return
  request=$(_zstor_request "$method" "$id" "$@") ||
    { _zstor_failed '{"message": "parameters are UTF-8: NAME=TEXT, NAME:=JSON or one JSON object", "data": {"type": "usage"}}'; return 1; }
  if [ -n "${_ZSTOR_OUT:-}" ]; then
    (printf '%s\n' "$request" >&"$_ZSTOR_OUT") 2>/dev/null || :
    until case $reply in *"$id"* | *'"id":null}') ;; *) false ;; esac; do
      IFS= read -r -t "$(_zstor_patience)" -u "$_ZSTOR_IN" reply || { _zstor_silence; return 2; }
    done
  else
    _zstor_connected || return
    reply=$(printf '%s\n' "$request" | _zstor_socat 2>/dev/null) || :
  fi
  case $reply in
    *'"error":'*)
      if error=$(printf '%s' "$reply" | jq -ce '.error // empty' 2>/dev/null); then
        _zstor_failed "$error"
        return 1
      fi
      ;;
  esac
  _ZSTOR_RESULT=$(printf '%s' "$reply" | jq -c "select(.method == null) | $filter" 2>/dev/null) && [ -n "$_ZSTOR_RESULT" ] || { _zstor_silence; return 2; }
}

_zstor_request() ( # METHOD ID [JSON | NAME=TEXT | NAME:=JSON]...: the line to send
  method=$1 id=$2
  shift 2
  [ $# -gt 0 ] || set -- '{}'
  set -o pipefail # jq takes any bytes, and what is no UTF-8 for others: two keys would become one
  printf '\0%s' "$@" | iconv -f UTF-8 -t UTF-8 2>/dev/null | jq -Rsc --arg method "$method" --arg id "$id" --argjson seconds "${ZSTOR_TIMEOUT:-3600}" '
    split("\u0000")[1:]
    | map(if startswith("{") then fromjson
          elif contains("=") | not then error("no value")
          else split("=") as $parts | $parts[0] as $name | ($parts[1:] | join("=")) as $text
            | if $name | endswith(":") then {($name[:-1]): ($text | fromjson)} else {($name): $text} end
          end)
    | add
    | {jsonrpc: "2.0", id: $id, method: $method, params: (. + {_meta: ({timeoutSeconds: $seconds} + (._meta // {}))})}' 2>/dev/null
)

_zstor_socat() { # stdin to the daemon, its replies to stdout; the subshell that it runs in becomes socat
  local socket name special seconds
  socket=$(zstor_socket)
  name=${socket##*/} seconds=$(_zstor_patience)
  for special in '\' , : ! '"' "'" '(' '[' '{'; do name=${name//"$special"/"\\$special"}; done
  case $socket in */*) socket=${socket%/*}/ ;; *) socket=. ;; esac
  # From its directory: a path may be longer than the 107 bytes that a socket's address holds.
  builtin cd -- "$socket" >/dev/null && exec socat -t "$seconds" -T "$seconds" - "UNIX-CONNECT:./$name"
}

_zstor_connected() { # whether a daemon of ours may listen
  local socket
  socket=$(zstor_socket)
  if ! [ -S "$socket" ]; then
    _zstor_failed "$(jq -nc --arg socket "$socket" '{message: "no daemon at \($socket)", data: {type: "no_daemon", hint: "zstor daemon"}}')"
  elif ! [ -O "$socket" ]; then
    _zstor_failed "$(jq -nc --arg socket "$socket" '{message: "\($socket) is not yours: nothing was sent", data: {type: "no_daemon"}}')"
  else
    return 0
  fi
  return 2
}

_zstor_seconds() { # whether the two times are some; 1 if not
  case ${ZSTOR_TIMEOUT:-3600},${ZSTOR_GRACE:-30} in
    *[!0-9.,]* | *.*.*,* | *,*.*.* | .,* | *,.)
      _zstor_failed '{"message": "ZSTOR_TIMEOUT and ZSTOR_GRACE are seconds, as 60 or 0.5", "data": {"type": "usage"}}'
      return 1
      ;;
  esac
}

_zstor_patience() { # whole seconds until a reply is missing, at least one
  local timeout=${ZSTOR_TIMEOUT:-3600} grace=${ZSTOR_GRACE:-30}
  printf '%s\n' $((10#0${timeout%%.*} + 10#0${grace%%.*} + 1)) # 10#: without it 08 is octal, and none
}

_zstor_silence() {
  _zstor_failed '{"message": "no answer: the daemon is stopped, or closed the connection", "data": {"type": "no_daemon"}}'
}

_zstor_failed() { # an error, on stderr and in ZSTOR_ERROR
  ZSTOR_ERROR=$1
  printf '%s' "$1" | jq -r '"zstor: \([.message, .data.detail // empty] | join(": "))\(.data.hint // "" | if . == "" then . else " (\(.))" end)"' >&2 ||
    printf 'zstor: %s\n' "$1" >&2 || :
}
