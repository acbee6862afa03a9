#!/bin/sh
RUNTIME=runc
. "$(dirname "$0")/oci.sh"
