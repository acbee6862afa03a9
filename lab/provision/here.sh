#!/bin/sh
# First process of the here driver's namespaces. $1: the run directory; then the places to cover.
set -eu
source=$1
shift
mount -t proc proc /proc
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/user/1000 /run/lock /run/lab-here /run/lab-provision
chown 1000:1000 /run/user/1000
chmod 700 /run/user/1000
# Held here, because /root or /tmp, where they may lie, are about to be covered.
mount --bind "$source" /run/lab-here
mount --bind "$(dirname "$0")" /run/lab-provision
run=/run/lab-here
for place in "$@"; do
    mkdir -p "/$place"
    mount --bind "$run/over/$place" "/$place"
done
chmod 1777 /tmp
chown 1000:1000 /home/vagrant
for name in passwd group subuid subgid; do
    [ -e "/etc/$name" ] || : >"/etc/$name"
    mount --bind "$run/etc/$name" "/etc/$name"
done
# crun takes one kind of cgroups or the other, not a hybrid of both.
umount /sys/fs/cgroup/unified 2>/dev/null || true
ip link set lo up
hostname cntr-lab
/usr/bin/python3 -m venv --system-site-packages /opt/cntr
ln -sf /opt/cntr/bin/cntr /usr/local/bin/cntr
cp /run/lab-provision/slim-app.c /usr/local/lib/cntr-lab/
gcc -g -O0 -static -o /usr/local/lib/cntr-lab/slim-app /usr/local/lib/cntr-lab/slim-app.c
: >"$run/ready"
# Reap, and stay.
trap 'exit 0' TERM
while :; do
    sleep 3600 &
    wait $! || true
done
