#!/bin/sh
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot fat}

engine_start() {
    if systemd_here; then
        systemctl start docker.service
    elif ! docker info >/dev/null 2>&1; then
        # No systemd, perhaps no right to a bridge or to netfilter: a daemon that needs neither.
        dockerd --iptables=false --ip6tables=false --bridge=none --storage-driver=overlay2 >/var/log/lab-dockerd.log 2>&1 &
    fi
    wait_for 120 docker info
}
engine_stop() { if systemd_here; then systemctl stop docker.service docker.socket containerd.service; fi; }
engine_log() { if systemd_here; then journalctl -b --no-pager -u docker -u containerd; else cat /var/log/lab-dockerd.log; fi; }

make_images() {
    docker image inspect lab/box:1 >/dev/null 2>&1 && return
    make_slim_root "$STORE/slim"
    make_box_root "$STORE/box"
    tar -C "$STORE/slim" -c . | docker import - lab/slim:1 >/dev/null
    tar -C "$STORE/box" -c . | docker import - lab/box:1 >/dev/null
    make_fat_root "$STORE/fat"
    tar -C "$STORE/fat" -c . | docker import - lab/fat:1 >/dev/null
}

container_start() {
    if [ "$1" = fat ]; then
        docker run -d --name fat --network none --privileged --pid host -e LAB_NAME=fat -e "GREETING=hello world" \
            -v /usr:/usr:ro -v /opt:/opt:ro -v /etc:/etc:ro lab/fat:1 "$LIB/slim-app" >/dev/null
        return
    fi
    describe "$1"
    set -- "$1" --network none -e "LAB_NAME=$1" -e "GREETING=hello world"
    name=$1
    shift
    [ -z "$READONLY" ] || set -- "$@" --read-only
    [ -z "$RUNAS" ] || set -- "$@" --user "$RUNAS:$RUNAS" --group-add 2000 --cap-drop ALL --security-opt no-new-privileges
    [ "$name" != box ] || set -- "$@" --hostname boxhost
    [ "$name" != crash ] || set -- "$@" --restart always
    if [ "$IMAGE" = slim ]; then
        set -- "$@" lab/slim:1 /slim-app
    else
        set -- "$@" -v "$VOLUME:/data" --tmpfs /scratch lab/box:1 /bin/sh -c "$CMD"
    fi
    docker run -d --name "$name" "$@" >/dev/null
}
container_remove() { docker rm -f "$1"; }
container_again() { docker start "$1" >/dev/null; }
container_stop() { docker stop -t 20 "$1" >/dev/null; }
container_pause() { docker pause "$1" >/dev/null; }
container_unpause() { docker unpause "$1" >/dev/null; }
container_pid() {
    pid=$(docker inspect -f '{{.State.Pid}}' "$1")
    [ "$pid" -gt 0 ] && echo "$pid"
}
container_exec() { docker exec "$@"; }

main "$@"
