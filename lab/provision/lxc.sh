#!/bin/sh
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot}
PLACE=/var/lib/lxc

engine_start() { mkdir -p "$PLACE"; }
engine_stop() { :; }
engine_log() { cat "$PLACE"/*/log 2>/dev/null; }

container_start() {
    name=$1
    describe "$name"
    tree=$PLACE/$name
    rm -rf "$tree"
    mkdir -p "$tree"
    cp -a "$STORE/$IMAGE" "$tree/rootfs"
    mkdir -p "$tree/rootfs/proc" "$tree/rootfs/sys" "$tree/rootfs/dev"
    {
        echo "lxc.uts.name = $([ "$name" = box ] && echo boxhost || echo "$name")"
        echo "lxc.rootfs.path = dir:$tree/rootfs"
        echo "lxc.net.0.type = empty"
        echo "lxc.mount.auto = proc:mixed sys:mixed"
        echo "lxc.environment = LAB_NAME=$name"
        echo "lxc.environment = GREETING=hello world"
        echo "lxc.apparmor.profile = unconfined"
        [ -z "$READONLY" ] || echo "lxc.rootfs.options = ro"
        if [ -n "$RUNAS" ]; then
            printf 'lxc.init.uid = %s\nlxc.init.gid = %s\nlxc.init.groups = 2000\nlxc.no_new_privs = 1\nlxc.cap.keep = none\n' "$RUNAS" "$RUNAS"
        fi
        if [ "$IMAGE" = slim ]; then
            echo "lxc.init.cmd = /slim-app"
        else
            echo "lxc.mount.entry = $VOLUME data none bind 0 0"
            echo "lxc.mount.entry = tmpfs scratch tmpfs mode=1777 0 0"
            printf '#!/bin/sh\n%s\n' "$CMD" >"$tree/rootfs/start"
            chmod 755 "$tree/rootfs/start"
            echo "lxc.init.cmd = /start"
        fi
    } >"$tree/config"
    lxc-start -P "$PLACE" -n "$name" -d -o "$tree/log" -l INFO
    own_name_and_lo "$name"
}
container_stop() { lxc-stop -P "$PLACE" -n "$1" -k; }
container_remove() {
    container_stop "$1" || true
    rm -rf "${PLACE:?}/$1"
}
container_pause() { lxc-freeze -P "$PLACE" -n "$1"; }
container_unpause() { lxc-unfreeze -P "$PLACE" -n "$1"; }
container_pid() {
    pid=$(lxc-info -P "$PLACE" -n "$1" -pH)
    [ -n "$pid" ] && echo "$pid"
}
container_exec() {
    name=$1
    shift
    lxc-attach -P "$PLACE" -n "$name" -- "$@"
}

main "$@"
