#!/bin/sh
# The OCI runtimes by themselves: runc.sh and crun.sh say which one in RUNTIME.
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot}

engine_start() { $RUNTIME --version >/dev/null; }
engine_stop() { :; }
engine_log() { cat "$STORE/bundles"/*/log 2>/dev/null; }

container_start() {
    name=$1
    describe "$name"
    bundle=$STORE/bundles/$name
    rm -rf "$bundle"
    mkdir -p "$bundle"
    cp -a "$STORE/$IMAGE" "$bundle/rootfs"
    (cd "$bundle" && $RUNTIME spec)
    python3 "$(dirname "$0")/oci-config.py" "$bundle/config.json" "$name" "$IMAGE" "$VOLUME" "${CMD:-/slim-app}" "$READONLY" "$RUNAS"
    $RUNTIME run -d -b "$bundle" "$name" >"$bundle/log" 2>&1 </dev/null
}
container_stop() {
    $RUNTIME kill "$1" TERM
    wait_for 20 task_is_over "$1"
}
task_is_over() { ! container_pid "$1" >/dev/null; }
container_remove() { $RUNTIME delete --force "$1"; }
container_pause() { $RUNTIME pause "$1"; }
container_unpause() { $RUNTIME resume "$1"; }
container_pid() { $RUNTIME state "$1" | python3 -c 'import json, sys; s = json.load(sys.stdin); s["status"] in ("running", "paused") or sys.exit(1); print(s["pid"])'; }
container_exec() { $RUNTIME exec "$@"; }

main "$@"
