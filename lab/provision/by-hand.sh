#!/bin/sh
# What `vagrant up NAME` by hand runs: install cntr, start the engine and its containers.
# Arguments: ENGINE WHEEL CONTAINER…
set -eu
engine=$1 wheel=$2
shift 2
mkdir -p /usr/local/lib/cntr-lab/provision
cp -r /tmp/provision/. /usr/local/lib/cntr-lab/provision/
/opt/cntr/bin/python -m pip install -q --no-index --no-deps --force-reinstall "/tmp/$wheel"
script="sh /usr/local/lib/cntr-lab/provision/$engine.sh up $*"
case $engine in
*-rootless) runuser -l vagrant -c "XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus $script" ;;
*) $script ;;
esac
echo "Beside you: $*. Try: sudo cntr attach $1"
