#!/bin/sh
# Also for rootless podman (podman-rootless.sh): then it runs as the user, whose store is in its home.
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot}
VOLUME=$STORE/volume-$(id -u)
[ "$(id -u)" = 0 ] || STORE=$HOME/cntr-lab VOLUME=$HOME/cntr-lab/volume

PODMAN=podman
# Without systemd: no cgroup manager to ask, no journal, and limits that may be raised no further than they are.
systemd_here || PODMAN="podman --cgroup-manager=cgroupfs --events-backend=file"
LIMITS=
systemd_here || LIMITS="--ulimit nofile=1024:1024 --ulimit nproc=1024:1024"

engine_start() { $PODMAN info >/dev/null; }
engine_stop() { :; }
engine_log() { if systemd_here; then journalctl -b --no-pager -t podman -t conmon; fi; }

make_images() {
    $PODMAN image exists localhost/lab/box:1 && return
    make_slim_root "$STORE/slim"
    make_box_root "$STORE/box"
    tar -C "$STORE/slim" -c . | $PODMAN import -q - localhost/lab/slim:1 >/dev/null
    tar -C "$STORE/box" -c . | $PODMAN import -q - localhost/lab/box:1 >/dev/null
}

container_start() {
    describe "$1"
    # shellcheck disable=SC2086 # several words, or none
    set -- "$1" --network none -e "LAB_NAME=$1" -e "GREETING=hello world" $LIMITS
    name=$1
    shift
    [ -z "$READONLY" ] || set -- "$@" --read-only --read-only-tmpfs=false
    [ -z "$RUNAS" ] || set -- "$@" --user "$RUNAS:$RUNAS" --group-add 2000 --cap-drop ALL --security-opt no-new-privileges
    [ "$name" != box ] || set -- "$@" --hostname boxhost
    [ "$name" != userns ] || set -- "$@" --uidmap 0:1:5000 --gidmap 0:1:5000
    if [ "$IMAGE" = slim ]; then
        set -- "$@" localhost/lab/slim:1 /slim-app
    else
        set -- "$@" -v "$VOLUME:/data" --tmpfs /scratch localhost/lab/box:1 /bin/sh -c "$CMD"
    fi
    $PODMAN run -d --name "$name" "$@" >/dev/null
}
container_remove() { $PODMAN rm -f -t 5 "$1"; }
container_again() { $PODMAN start "$1" >/dev/null; }
container_stop() { $PODMAN stop -t 20 "$1" >/dev/null; }
container_pause() { $PODMAN pause "$1" >/dev/null; }
container_unpause() { $PODMAN unpause "$1" >/dev/null; }
container_pid() {
    pid=$($PODMAN inspect -f '{{.State.Pid}}' "$1")
    [ "$pid" -gt 0 ] && echo "$pid"
}
container_exec() { $PODMAN exec "$@"; }

main "$@"
