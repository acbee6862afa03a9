#!/bin/sh
# Rootless podman is podman run by a user who is not root; the lab runs this script as that user.
[ "$(id -u)" != 0 ] || { echo "provision: podman-rootless.sh is for a user, not for root" >&2; exit 2; }
. "$(dirname "$0")/podman.sh"
