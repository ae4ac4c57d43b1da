#!/bin/bash
# manager.sh SCRIPT [ro|rw:NAME:DIR]... - run a script under a real, unprivileged `systemd --user`, also where process 1 is no systemd.
# Needs root, for namespaces and a cgroup; the manager and the script run as a user that exists only here and has no rights.
# Each DIR appears as /mnt/NAME. Everything but its cgroup lives in the namespaces and is gone with them.
set -euo pipefail
script=$1
shift
user=zstortest uid=64117
! getent passwd $uid >/dev/null || { echo "uid $uid is taken here" >&2; exit 125; }
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  layout=v2 tops=(/sys/fs/cgroup)
else
  layout=v1 tops=(/sys/fs/cgroup/systemd)
  [ ! -d /sys/fs/cgroup/unified ] || tops+=(/sys/fs/cgroup/unified)
fi
groups=()
for top in "${tops[@]}"; do
  groups+=("$top/$user.$$")
  mkdir "$top/$user.$$"
  chown -R $uid:$uid "$top/$user.$$"
done
leave() {  # what was killed may take a moment to leave its cgroup
  for group in "${groups[@]}"; do
    for _ in {1..100}; do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$group" ] || break
      sleep 0.05
    done
  done
}
trap leave EXIT
export user uid layout script

inside='
set -e
home=/home/$user run=/run/user/$uid
mount -t tmpfs -o mode=755 tmpfs /mnt   # before /home and /run are covered: the directories may lie there
for bind in "$@"; do
  IFS=: read -r mode name directory <<<"$bind"
  place=/mnt/$name
  mkdir "$place" && mount --bind "$directory" "$place"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$place"
done
# /run is a mount of its own, or the options that imply MountAPIVFS= would cover it. systemd believes in itself by /run/systemd/system.
mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/systemd/system /run/systemd/unit-root /run/lock
mount -t tmpfs -o mode=755 tmpfs /home
install -d -o $uid -g $uid -m 700 "$home" "$run"
for file in passwd group; do cp /etc/$file /run/.$file; done
echo "$user:x:$uid:$uid::$home:/bin/bash" >>/run/.passwd
echo "$user:x:$uid:" >>/run/.group
for file in passwd group; do mount --bind /run/.$file /etc/$file; done
# The hierarchies anew: the root of the cgroup namespace is what the manager shall see.
if [ $layout = v2 ]; then
  umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; fi
  umount /sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
cd "$home"
# Not exec: process 1 of the namespace stays root, or the change of the uid would clear the signal that --kill-child asked for.
setpriv --reuid=$uid --regid=$uid --init-groups --inh-caps=-all -- env -i HOME="$home" USER=$user LOGNAME=$user SHELL=/bin/bash \
  PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 XDG_RUNTIME_DIR="$run" script="$script" bash -c "
    for manager in /usr/lib/systemd/systemd /lib/systemd/systemd; do [ -x \$manager ] && break; done
    \$manager --user --log-target=console >/dev/null 2>&1 &
    until case \$(systemctl --user is-system-running --wait 2>&1) in running | degraded) true ;; *) false ;; esac do
      kill -0 \$! || { echo the manager did not come up >&2; exit 125; }
      sleep 0.05
    done
    exec bash \"\$script\"
  "
'
set +e
(
  for group in "${groups[@]}"; do echo $BASHPID >"$group/cgroup.procs" || exit 125; done
  exec timeout --foreground --signal=KILL "${LIMIT_SECONDS:-240}" unshare --cgroup --pid --fork --mount --mount-proc --kill-child -- bash -c "$inside" inside "$@"
)
