#!/bin/sh
# Kubernetes pods without a kubelet: containerd's CRI plugin, asked over its socket (cri.py). Each container is the only one of its pod.
. "$(dirname "$0")/lib.sh"
CONTAINERS=${LAB_CONTAINERS:-slim box readonly nonroot}
HERE=$(dirname "$0")
PODS=$STORE/pods

engine_start() {
    mkdir -p "$PODS" "$STORE/cni/bin" "$STORE/cni/conf"
    for name in loopback lab; do install -m 755 "$HERE/cni.sh" "$STORE/cni/bin/$name"; done
    echo '{"cniVersion": "0.3.1", "name": "lab", "plugins": [{"type": "lab"}]}' >"$STORE/cni/conf/lab.conflist"
    cat >"$STORE/containerd.toml" <<CONF
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/lab-box:1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$STORE/cni/bin"
conf_dir = "$STORE/cni/conf"
[plugins."io.containerd.internal.v1.opt"]
path = "$STORE/opt"
CONF
    # Without systemd, perhaps no AppArmor to ask, nor the right to be killed last.
    systemd_here || sed -i '/^sandbox_image/a disable_apparmor = true\nrestrict_oom_score_adj = true' "$STORE/containerd.toml"
    if systemd_here; then
        cp "$STORE/containerd.toml" /etc/containerd/config.toml
        systemctl restart containerd.service
    elif ! ctr version >/dev/null 2>&1; then
        containerd --config "$STORE/containerd.toml" >/var/log/lab-containerd.log 2>&1 &
    fi
    wait_for 60 ctr version
}
engine_stop() { if systemd_here; then systemctl stop containerd.service; fi; }
engine_log() { if systemd_here; then journalctl -b --no-pager -u containerd; else cat /var/log/lab-containerd.log; fi; }

ask() { /usr/bin/python3 "$HERE/cri.py" "$@"; }
tasks() { ctr --namespace k8s.io task "$@"; }
id_of() { cut -d' ' -f2 "$PODS/$1"; }

make_images() {
    [ -d "$STORE/box" ] && return
    make_slim_root "$STORE/slim"
    make_box_root "$STORE/box"
    make_fat_root "$STORE/fat"
    for image in slim box fat; do
        ask image "$STORE/$image" "localhost/lab-$image:1" "$STORE/$image.tar"
        ctr --namespace k8s.io image import "$STORE/$image.tar" >/dev/null
    done
}

container_start() {
    case $1 in toolbox*)
        ask toolbox "$1" localhost/lab-fat:1 "$LIB/slim-app" >"$PODS/$1"
        return
        ;;
    esac
    describe "$1"
    # What a kubelet does for an emptyDir in memory: the tmpfs is the node's, the container gets a bind mount.
    if [ "$IMAGE" != slim ]; then
        mkdir -p "$PODS/$1.scratch"
        mount -t tmpfs -o mode=1777 tmpfs "$PODS/$1.scratch"
    fi
    export VOLUME READONLY RUNAS
    ask run "$1" "localhost/lab-$IMAGE:1" "$CMD" "$PODS/$1.scratch" >"$PODS/$1"
}
container_again() { tasks start --detach "$(id_of "$1")"; }
container_stop() { ask stop "$(id_of "$1")"; }
container_remove() {
    # Started again behind the plugin's back, it would not let the pod go.
    [ "$1" != crash ] || tasks delete --force "$(id_of "$1")" >/dev/null 2>&1 || true
    ask remove "$(cut -d' ' -f1 "$PODS/$1")" || true
    rm -f "$PODS/$1"
    if mountpoint -q "$PODS/$1.scratch"; then umount "$PODS/$1.scratch"; fi
}
container_pause() { tasks pause "$(id_of "$1")"; }
container_unpause() { tasks resume "$(id_of "$1")"; }
container_pid() { tasks ls | awk -v id="$(id_of "$1")" '$1 == id && ($3 == "RUNNING" || $3 == "PAUSED") { print $2; found = 1 } END { exit !found }'; }
container_exec() {
    id=$(id_of "$1")
    shift
    tasks exec --exec-id "lab-$$" "$id" "$@"
}

main "$@"
