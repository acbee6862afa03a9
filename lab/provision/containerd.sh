#!/bin/sh
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot}

engine_start() {
    if systemd_here; then
        systemctl start containerd.service
    elif ! ctr version >/dev/null 2>&1; then
        containerd >/var/log/lab-containerd.log 2>&1 &
    fi
    wait_for 60 ctr version
}
engine_stop() { if systemd_here; then systemctl stop containerd.service; fi; }
engine_log() { if systemd_here; then journalctl -b --no-pager -u containerd; else cat /var/log/lab-containerd.log; fi; }

container_start() {
    name=$1
    describe "$name"
    tree=$STORE/containerd/$name
    rm -rf "$tree"
    mkdir -p "$STORE/containerd"
    cp -a "$STORE/$IMAGE" "$tree"
    set -- --env PATH=/usr/sbin:/usr/bin:/sbin:/bin --env "LAB_NAME=$name" --env "GREETING=hello world"
    [ -z "$READONLY" ] || set -- "$@" --read-only
    if [ -n "$RUNAS" ]; then
        set -- "$@" --user "$RUNAS:$RUNAS"
        for capability in $(ctr_default_capabilities); do set -- "$@" --cap-drop "$capability"; done
    fi
    if [ "$IMAGE" = slim ]; then
        ctr run -d "$@" --rootfs "$tree" "$name" /slim-app
    else
        ctr run -d "$@" --mount "type=bind,src=$VOLUME,dst=/data,options=rbind:rw" --mount type=tmpfs,src=tmpfs,dst=/scratch,options=mode=1777 \
            --rootfs "$tree" "$name" /bin/sh -c "$CMD"
    fi
    own_name_and_lo "$name"
}
ctr_default_capabilities() {
    echo CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP \
        CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE
}
container_stop() {
    ctr task kill -s SIGTERM "$1"
    wait_for 20 task_is_over "$1"
}
task_is_over() { ! container_pid "$1" >/dev/null; }
container_remove() {
    ctr task rm -f "$1" || true
    ctr container rm "$1"
}
container_pause() { ctr task pause "$1"; }
container_unpause() { ctr task resume "$1"; }
container_pid() { ctr task ls | awk -v name="$1" '$1 == name && ($3 == "RUNNING" || $3 == "PAUSED") { print $2; found = 1 } END { exit !found }'; }
container_exec() {
    name=$1
    shift
    ctr task exec --exec-id "lab-$$" "$name" "$@"
}

main "$@"
