# shellcheck shell=sh disable=SC2034 # what describe sets is the scripts' that read this one
# What every ENGINE.sh shares: root filesystems, the list of containers and what each of them is, and the verbs.
#
# Verbs:  up [NAME…]     start the engine, make the images, start the containers (all that this engine has, or these)
#         reset NAME     remove it and start it afresh
#         crash NAME     the same, of one that ends at once
#         again NAME     start it as it is, files and all
#         remove NAME
#         stop|pause|unpause|pid NAME
#         exec NAME CMD… the engine's own way in (what people use today)
#         log            the engine's journal
#         down           remove the containers, stop the engine
#
# Containers by convention:
#   slim      one static binary and nothing else: no shell, no /etc
#   box       busybox; a volume at /data, a tmpfs at /scratch, hostname "boxhost"
#   readonly  busybox on a read-only root
#   nonroot   busybox as uid 1000, no capabilities, no_new_privs
#   fat       the machine's own userland, privileged, in the host's pid namespace (docker only)
#   crash     busybox whose program ends with status 3 while there is no /etc/mended (docker, podman, cri), Docker's again and again
#   toolbox   the machine's /usr and /opt, privileged, with the machine's pid namespace and its / at /host: what `kubectl debug node/N
#             --profile=sysadmin` starts; toolbox-own-pid, -unprivileged lack that (cri; made by its scenario)
#   userns    busybox in a user namespace of its own (podman, nspawn)
#   boot      a whole system with its init (nspawn only)
# All of them carry GREETING="hello world" and LAB_NAME=NAME in their environment and run /slim-app.
set -eu

LIB=/usr/local/lib/cntr-lab
STORE=${LAB_STORE:-/var/lib/cntr-lab}
VOLUME=$STORE/volume

log() { echo "provision: $*" >&2; }
systemd_here() { [ -d /run/systemd/system ]; }

# --- root filesystems ------------------------------------------------------------------------------------------------

make_slim_root() { # DIR
    mkdir -p "$1"
    cp "$LIB/slim-app" "$1/slim-app"
}

make_box_root() { # DIR
    mkdir -p "$1/bin" "$1/sbin" "$1/usr/bin" "$1/etc" "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/run" "$1/var" "$1/data" "$1/scratch" "$1/root"
    chmod 1777 "$1/tmp" "$1/scratch"
    cp "$LIB/slim-app" "$1/slim-app"
    cp "$(command -v busybox)" "$1/bin/busybox"
    for applet in sh cat echo ls id env ps sleep hostname kill true false mount stat touch rm su printenv wc; do
        ln -sf busybox "$1/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:the application:/tmp:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\napp:x:1000:\nextra:x:2000:app\n' >"$1/etc/group"
    printf 'ID=slimbox\nNAME="Lab box"\n' >"$1/etc/os-release"
    echo "only in the container" >"$1/etc/lab-marker"
    cp "$(dirname "$0")/probe.sh" "$1/probe.sh"
}

make_volume() {
    mkdir -p "$VOLUME"
    [ -e "$VOLUME/marker" ] || echo "on the volume" >"$VOLUME/marker"
    chmod 0777 "$VOLUME"
}

# An image of links only: the machine's own /usr comes in as a volume.
make_fat_root() { # DIR
    mkdir -p "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/run" "$1/var/lib" "$1/root"
    for link in bin sbin lib lib64; do ln -sfn "usr/$link" "$1/$link"; done
}

make_images() { # of an engine that takes a root directory; others define their own
    [ -d "$STORE/box" ] && return
    make_slim_root "$STORE/slim"
    make_box_root "$STORE/box"
}

# --- what a container is ----------------------------------------------------------------------------------------------

describe() { # NAME -> IMAGE CMD READONLY RUNAS
    IMAGE=box READONLY='' RUNAS='' CMD='echo in-the-tmpfs >/scratch/marker 2>/dev/null; exec /slim-app'
    case $1 in
    slim) IMAGE=slim CMD='' ;;
    box | userns | tools) ;;
    readonly) READONLY=1 ;;
    nonroot) RUNAS=1000 ;;
    crash) CMD='[ -e /etc/mended ] || { echo "no /etc/mended"; exit 3; }; exec /slim-app' ;;
    *) return 1 ;;
    esac
}

# What some engines leave to a container's init, and the slim ones have none: their names, and an interface `lo` that is up.
own_name_and_lo() { # NAME
    wait_for 120 container_pid "$1"
    pid=$(container_pid "$1")
    [ "$1" != box ] || nsenter --target "$pid" --uts sh -c 'echo boxhost >/proc/sys/kernel/hostname'
    nsenter --target "$pid" --net ip link set lo up
}

wait_for() { # SECONDS COMMAND…
    limit=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt $((limit * 5)) ]; then
            log "gave up after ${limit} s: $*"
            "$@" || true
            return 1
        fi
        sleep 0.2
    done
}

# The first process called /slim-app at or below a pid: the container's own program where an engine names a supervisor.
slim_app_below() { # PID
    if [ "$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null)" = "/slim-app " ]; then
        echo "$1"
        return 0
    fi
    # shellcheck disable=SC2013 # words, on one line
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        if (slim_app_below "$child"); then return 0; fi
    done
    return 1
}

# --- verbs ------------------------------------------------------------------------------------------------------------

main() {
    verb=${1:-up}
    [ $# -eq 0 ] || shift
    case $verb in
    up)
        make_volume
        engine_start
        make_images
        starting=
        # shellcheck disable=SC2086 # a list of words
        [ $# -gt 0 ] || set -- $CONTAINERS
        for name; do # all at once: an emulated machine spends most of a start waiting for its other core
            log "container $name"
            container_start "$name" &
            starting="$starting $!"
        done
        for start in $starting; do wait "$start"; done
        for name; do
            wait_for 120 container_pid "$name"
        done
        ;;
    reset)
        container_remove "$1" >/dev/null 2>&1 || true
        container_start "$1"
        wait_for 120 container_pid "$1"
        ;;
    crash)
        container_remove "$1" >/dev/null 2>&1 || true
        container_start "$1"
        ;;
    again)
        container_again "$1"
        wait_for 120 container_pid "$1"
        ;;
    remove) container_remove "$1" ;;
    stop) container_stop "$1" ;;
    pause) container_pause "$1" ;;
    unpause) container_unpause "$1" ;;
    pid) container_pid "$1" ;;
    exec)
        name=$1
        shift
        container_exec "$name" "$@"
        ;;
    log) engine_log ;;
    down)
        for name in $CONTAINERS; do
            container_remove "$name" >/dev/null 2>&1 || true
        done
        engine_stop
        ;;
    *)
        log "no verb $verb"
        exit 2
        ;;
    esac
}
