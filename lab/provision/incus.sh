#!/bin/sh
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box}

engine_start() {
    if systemd_here; then
        systemctl start incus.socket incus.service
    elif ! incus info >/dev/null 2>&1; then
        incusd --group root >/var/log/lab-incusd.log 2>&1 &
    fi
    wait_for 120 incus info
    incus storage show lab >/dev/null 2>&1 || incus admin init --preseed <"$(dirname "$0")/incus-preseed.yaml"
}
engine_stop() { if systemd_here; then systemctl stop incus.service incus.socket; fi; }
engine_log() { if systemd_here; then journalctl -b --no-pager -u incus; else cat /var/log/lab-incusd.log; fi; }

make_images() {
    incus image show lab-box >/dev/null 2>&1 && return
    for image in slim box; do
        work=$STORE/incus-$image
        mkdir -p "$work/rootfs/proc" "$work/rootfs/sys" "$work/rootfs/dev" "$work/rootfs/sbin"
        "make_${image}_root" "$work/rootfs"
        if [ "$image" = slim ]; then
            ln -s ../slim-app "$work/rootfs/sbin/init"
        else
            describe box
            rm -f "$work/rootfs/sbin/init"
            printf '#!/bin/sh\n%s\n' "$CMD" >"$work/rootfs/sbin/init"
            chmod 755 "$work/rootfs/sbin/init"
        fi
        printf 'architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  description: lab %s\n' "$image" >"$work/metadata.yaml"
        tar -C "$work" -cf "$STORE/incus-$image.tar" metadata.yaml rootfs
        incus image import "$STORE/incus-$image.tar" --alias "lab-$image" >/dev/null
    done
}

container_start() {
    describe "$1"
    incus init "lab-$IMAGE" "$1" -c "environment.LAB_NAME=$1" -c "environment.GREETING=hello world" >/dev/null
    # Started as what it is, and not by the name of an init.
    [ "$IMAGE" = box ] || incus config set "$1" raw.lxc "lxc.init.cmd = /slim-app"
    if [ "$IMAGE" = box ]; then
        incus config device add "$1" data disk "source=$VOLUME" path=/data shift=true >/dev/null ||
            incus config device add "$1" data disk "source=$VOLUME" path=/data >/dev/null
    fi
    incus start "$1"
    own_name_and_lo "$1"
}
container_stop() { incus stop --force "$1"; }
container_remove() { incus delete --force "$1"; }
container_pause() { incus pause "$1"; }
container_unpause() { incus start "$1"; }
container_pid() {
    pid=$(incus query "/1.0/instances/$1/state" | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
    [ "$pid" -gt 0 ] && echo "$pid"
}
container_exec() {
    name=$1
    shift
    incus exec "$name" -- "$@"
}

main "$@"
