# Runs under a user manager (manager.sh): one life of the service. Each step leaves its words and status in /mnt/steps for a test.
export PATH=/mnt/program:$PATH
socket=$XDG_RUNTIME_DIR/zstor/zstor.sock

step() {  # NAME COMMAND...
  local name=$1
  shift
  "$@" >"/mnt/steps/$name.out" 2>"/mnt/steps/$name.err" </dev/null
  echo $? >"/mnt/steps/$name.rc"
}
call() {  # METHOD PARAMS, through socat
  printf '{"jsonrpc": "2.0", "id": 1, "method": "%s", "params": %s}\n' "$1" "$2" | socat -t 3600 - "UNIX-CONNECT:$socket"
}
pid() { systemctl --user show zstor.service -p MainPID --value; }
must_run() { [ "$(pid)" -gt 1 ] || { echo the service does not run >&2; exit 1; }; }  # kill 0 would be ourselves
service() { systemctl --user show zstor.service -p ActiveState,Result,StatusText,NRestarts; }

step status-before zstor systemd status --json
step install zstor systemd install
step modes stat -c '%a %F' "$XDG_RUNTIME_DIR/zstor" "$socket"
step by-hand zstor daemon

# The first call starts it. Paths in the home directory work both ways, by a shell alone.
echo 'text of a file' >in.txt
step write call object.write_file "{\"key\": \"a\", \"path\": \"$HOME/in.txt\"}"
step read call object.read_file "{\"key\": \"a\", \"path\": \"$HOME/out.txt\"}"
step came-back cat out.txt
step closed call object.read_file '{"key": "a", "path": "/usr/local/zstor-test.txt"}'
step status-ready zstor systemd status
step ready service

# One that is killed and not started anew, then one whose socket does not listen either.
printf '[Service]\nRestart=no\n' >~/.config/systemd/user/zstor.service.d/restart.conf
systemctl --user daemon-reload
must_run
kill -9 "$(pid)"
until [ "$(systemctl --user is-active zstor.service)" = failed ]; do sleep 0.1; done
step status-failed zstor systemd status
rm ~/.config/systemd/user/zstor.service.d/restart.conf
systemctl --user daemon-reload
systemctl --user reset-failed zstor.service
systemctl --user stop zstor.socket
step not-listening zstor get a -
systemctl --user start zstor.socket
zstor get a - >/dev/null

step stop systemctl --user stop zstor.service
step status-stopped zstor systemd status
step started-again zstor get a -
must_run
before=$(pid)
kill -9 "$before"
step after-kill zstor get a -
[ "$(pid)" != "$before" ]
step other-process echo $?

printf 'allowed_roots = ["%s/allowed"]\n' "$HOME" >~/.config/zstor/config.toml
mkdir allowed
step reload systemctl --user reload zstor.service
step outside-roots call object.write_file "{\"key\": \"b\", \"path\": \"$HOME/in.txt\"}"
rm ~/.config/zstor/config.toml

# With the home directory hidden descriptors work, and paths say what would show them.
step strict zstor systemd install --strict
step strict-put zstor put in.txt b
step strict-get zstor get -f b out2.txt
step strict-pipe bash -c 'cat in.txt | zstor put - piped && zstor get piped - | cat'
step strict-came-back cat out2.txt
step strict-write call object.write_file "{\"key\": \"c\", \"path\": \"$HOME/in.txt\"}"
step strict-read call object.read_file "{\"key\": \"b\", \"path\": \"$HOME/lost.txt\"}"
step strict-lost ls lost.txt
step strict-shard zstor shard add "$HOME/disk"
step strict-replace zstor shard replace 0 "$HOME/disk"
step strict-shards zstor shard ls
step strict-ready service

# One that hangs is ended by the watchdog and started anew.
mkdir -p ~/.config/systemd/user/zstor.service.d
printf '[Service]\nWatchdogSec=3s\n' >~/.config/systemd/user/zstor.service.d/watchdog.conf
systemctl --user daemon-reload
systemctl --user reset-failed zstor.service
systemctl --user restart zstor.service
until [ "$(pid)" -gt 1 ]; do sleep 0.1; done # on a machine with other work it may have been ended by then
kill -STOP "$(pid)"
until [ "$(systemctl --user show zstor.service -p NRestarts --value)" -ge 1 ]; do sleep 0.1; done
rm ~/.config/systemd/user/zstor.service.d/watchdog.conf
systemctl --user daemon-reload
systemctl --user reset-failed zstor.service
systemctl --user restart zstor.service
step after-watchdog zstor get a -

# Installed with a configuration that the environment names, in a place that has what means something in units.
odd="$HOME/a:b \$HOME \${x} %h.toml"
echo 'default_namespace = "elsewhere"' >"$odd"
step odd-install env ZSTOR_CONFIG="$odd" zstor systemd install --strict
step odd-write call object.write '{"key": "c", "value": "x"}'

step uninstall zstor systemd uninstall
step left find .config/systemd -name '*zstor*'
step kept ls .local/share/zstor/metastore.sqlite
step uninstall-again zstor systemd uninstall
