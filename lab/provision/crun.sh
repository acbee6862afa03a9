#!/bin/sh
RUNTIME=crun
. "$(dirname "$0")/oci.sh"
