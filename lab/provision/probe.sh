#!/bin/sh
# Run inside a container, by the engine's own exec: what of a session (`sleep 4646`) can the container's root reach?
for process in /proc/[0-9]*; do
    line=$(/bin/busybox tr '\0' ' ' <"$process/cmdline" 2>/dev/null)
    [ "$line" = "sleep 4646 " ] || continue
    for file in root/etc cwd/etc environ exe mem; do
        /bin/busybox ls "$process/$file/" >/dev/null 2>&1 && echo "open: $file"
        /bin/busybox head -c 1 "$process/$file" >/dev/null 2>&1 && echo "readable: $file"
    done
    # The numbers of its open files can be listed by the same uid; what they are, and the files themselves, must not.
    /bin/busybox readlink "$process/fd/0" >/dev/null 2>&1 && echo "open: fd/0"
    echo looked
done
