#!/bin/sh
# Last mmdebstrap hook: turn the root directory $1 into $2/{vmlinuz,box.raw,busybox,modules/,release}. $3: disk size in GiB.
# It runs inside mmdebstrap's user namespace where there is one, so that ownership is right without being root outside.
set -eu
root=$1 out=$2 gib=$3
kernel=$(basename "$root"/lib/modules/*)
cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$root/bin/busybox" "$out/busybox"
echo "$kernel" >"$out/release"
mkdir -p "$out/modules"
cp "$root/lib/modules/$kernel/modules.dep" "$root/lib/modules/$kernel/modules.builtin" "$out/modules/"
(cd "$root/lib/modules/$kernel" && tar cf - kernel/drivers/block kernel/drivers/virtio kernel/fs/ext4 kernel/fs/jbd2 kernel/fs/mbcache.ko* \
    kernel/lib kernel/crypto kernel/arch/x86/crypto 2>/dev/null || true) | tar xf - -C "$out/modules"
rm -rf "${root:?}/boot/"* "$root/tmp/"* "$root/run/"*
truncate -s "${gib}G" "$out/box.raw"
# mmdebstrap's /proc, /sys and /dev are mounted in the root: a non-recursive bind, in a mount namespace of its own, is free of them.
mkdir -p "$out/bare"
# shellcheck disable=SC2016 # the inner shell expands them
unshare --mount --propagation private sh -euc '
    mount --bind "$1" "$2/bare"
    mke2fs -q -t ext4 -F -L cntr-lab -m 0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d "$2/bare" "$2/box.raw"
' pack "$root" "$out"
rmdir "$out/bare"
chmod -R a+rX "$out"
: >"$out/done"
