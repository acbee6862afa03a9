#!/bin/sh
# systemd-nspawn: each container a transient service; registered with machinectl under its name where systemd runs.
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot userns boot}
BOOT=/run/lab-boot

engine_start() {
    mkdir -p "$STORE/nspawn"
    if systemd_here; then systemctl start systemd-machined.service; fi
}
engine_stop() { :; }
engine_log() { if systemd_here; then journalctl -b --no-pager -u 'lab-nspawn-*' -u systemd-machined; else cat "$STORE"/nspawn/*.log; fi; }

container_start() {
    name=$1
    tree=$STORE/nspawn/$name
    rm -rf "$tree"
    if [ "$name" = boot ]; then
        # The machine's own system once more, under an overlay that is forgotten: pid 1 is systemd.
        mkdir -p $BOOT/upper $BOOT/work $BOOT/root
        mountpoint -q $BOOT/root || mount -t overlay boot -o lowerdir=/,upperdir=$BOOT/upper,workdir=$BOOT/work $BOOT/root
        launch boot --boot --directory=$BOOT/root --private-network
        return
    fi
    describe "$name"
    cp -a "$STORE/$IMAGE" "$tree"
    # nspawn wants mount points, and a /usr to believe that a directory is a root file system; a scratch image has none.
    mkdir -p "$tree/usr" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/run" "$tree/tmp" "$tree/etc"
    set -- --directory="$tree" --private-network --setenv="LAB_NAME=$name" --setenv="GREETING=hello world" --resolv-conf=off --timezone=off
    [ "$name" != box ] || set -- "$@" --hostname=boxhost
    [ -z "$READONLY" ] || set -- "$@" --read-only
    [ -z "$RUNAS" ] || set -- "$@" --no-new-privileges=yes
    [ "$name" != userns ] || set -- "$@" --private-users=524288:65536
    if [ "$IMAGE" = slim ]; then
        set -- "$@" /slim-app
    else
        [ "$name" = userns ] || set -- "$@" --bind="$VOLUME:/data"
        set -- "$@" --tmpfs=/scratch:mode=1777
        if [ -n "$RUNAS" ]; then
            set -- "$@" /bin/sh -c 'exec su -s /bin/sh app -c "exec /slim-app"'
        else
            set -- "$@" /bin/sh -c "$CMD"
        fi
    fi
    launch "$name" "$@"
}

launch() { # NAME OPTIONS… : start nspawn and leave it running
    name=$1
    shift
    if systemd_here; then
        systemd-run -q --collect --unit="lab-nspawn-$name" --property=Delegate=yes --property=KillMode=mixed \
            systemd-nspawn -q --machine="$name" --keep-unit --register=yes "$@"
    else
        systemd-nspawn -q --machine="$name" --keep-unit --register=no "$@" >"$STORE/nspawn/$name.log" 2>&1 </dev/null &
    fi
}

container_remove() {
    container_stop "$1"
    rm -rf "$STORE/nspawn/$1"
    if [ "$1" = boot ]; then
        umount $BOOT/root
        rm -rf $BOOT
    fi
}
container_stop() {
    if systemd_here; then
        systemctl stop "lab-nspawn-$1.service"
        systemctl reset-failed "lab-nspawn-$1.service" 2>/dev/null || true
    else
        supervisor=$(pgrep -f -- "^systemd-nspawn.*--machine=$1 ")
        kill "$(container_pid "$1")"
        wait_for 20 gone "$supervisor"
    fi
}
gone() { [ ! -e "/proc/$1" ]; }
container_pause() { echo 1 >"$(control_group "$1")/cgroup.freeze"; }
container_unpause() { echo 0 >"$(control_group "$1")/cgroup.freeze"; }
control_group() { echo "/sys/fs/cgroup$(cut -d: -f3 "/proc/$(container_pid "$1")/cgroup")"; }
container_pid() {
    if systemd_here; then
        leader=$(machinectl show -p Leader --value "$1")
        [ "${leader:-0}" -gt 0 ] || return 1
        if [ "$1" = boot ]; then echo "$leader"; else slim_app_below "$leader"; fi
    else
        slim_app_below "$(pgrep -f -- "^systemd-nspawn.*--machine=$1 " | head -n 1)"
    fi
}
container_exec() { # a container without init can only be entered, not asked
    name=$1
    shift
    if [ "$name" = boot ]; then
        systemd-run -q --machine=boot --pipe --wait "$@"
    else
        nsenter --all --target "$(container_pid "$name")" "$@"
    fi
}

main "$@"
