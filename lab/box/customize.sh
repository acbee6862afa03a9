#!/bin/sh
# Runs on the machine that builds a box, with the box's root directory as $1 (mmdebstrap customize hook) and the lab's
# public SSH key as $2.
# Everything a first boot would do happens here, so that each machine boots as if for the second time.
set -eu
root=$1 public_key=$2
here=$(dirname "$0")

in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

# --- who may come in: root and vagrant, with a key that this lab made for itself
in_root useradd -m -u 1000 -U -s /bin/bash vagrant
in_root passwd -q -d vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
chmod 0440 "$root/etc/sudoers.d/vagrant"
grep -q '^vagrant:' "$root/etc/subuid" || echo 'vagrant:100000:65536' >>"$root/etc/subuid"
grep -q '^vagrant:' "$root/etc/subgid" || echo 'vagrant:100000:65536' >>"$root/etc/subgid"
for home in root home/vagrant; do
    mkdir -p "$root/$home/.ssh"
    echo "$public_key" >"$root/$home/.ssh/authorized_keys"
    : >"$root/$home/.hushlogin" # who comes by `lab try` reads what it says, not the licence
    chmod 0700 "$root/$home/.ssh"
    chmod 0600 "$root/$home/.ssh/authorized_keys"
done
in_root chown -R vagrant:vagrant /home/vagrant/.ssh
mkdir -p "$root/var/lib/systemd/linger"
: >"$root/var/lib/systemd/linger/vagrant" # rootless engines need a user manager before anybody logs in

cat >"$root/etc/ssh/sshd_config.d/lab.conf" <<'CONF'
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 100
MaxSessions 100
PrintMotd no
CONF
# A slow machine's half-open logins must not be punished; older sshd do not know the word.
if in_root sshd -T -o PerSourcePenalties=no >/dev/null 2>&1; then
    echo 'PerSourcePenalties no' >>"$root/etc/ssh/sshd_config.d/lab.conf"
fi
in_root ssh-keygen -A >/dev/null

# --- network: one user-mode interface
printf '[Match]\nName=eth* en*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
    >"$root/etc/systemd/network/80-lab.network"
in_root systemctl -q enable systemd-networkd.service ssh.service
echo cntr-lab >"$root/etc/hostname"
printf '127.0.0.1 localhost cntr-lab\n::1 localhost\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
echo '/dev/vda / ext4 defaults,noatime 0 1' >"$root/etc/fstab"

# --- quiet, quick boots: no work that a throwaway machine never needs
for unit in systemd-networkd-wait-online.service systemd-resolved.service systemd-timesyncd.service \
    systemd-update-done.service systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service xfs_scrub_all.timer fstrim.timer \
    man-db.timer logrotate.timer motd-news.timer apparmor.service getty@tty1.service serial-getty@ttyS0.service \
    systemd-firstboot.service systemd-pcrphase.service systemd-binfmt.service systemd-journald-audit.socket; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Engines, nginx and auditd are installed, not running: the provision script of a machine, or a scenario, starts the one it is about.
for unit in docker.service docker.socket containerd.service podman.socket podman.service podman-restart.service \
    podman-auto-update.timer lxc.service lxc-net.service lxc-monitord.service incus.service incus.socket \
    incus-startup.service incus-user.socket incus-user.service incus-lxcfs.service lxcfs.service nginx.service \
    auditd.service audit-rules.service; do
    [ -e "$root/usr/lib/systemd/system/$unit" ] || [ -e "$root/lib/systemd/system/$unit" ] || continue
    in_root systemctl -q disable "$unit" 2>/dev/null || true
done
in_root systemctl -q --global disable podman.socket podman-auto-update.timer podman-restart.service 2>/dev/null || true

mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\nAudit=no\n' >"$root/etc/systemd/journald.conf.d/lab.conf"

# --- cntr's own place: an isolated Python that sees Debian's pyfuse3; the lab installs the wheel into it at each start
in_root python3 -m venv --system-site-packages /opt/cntr
ln -s /opt/cntr/bin/cntr "$root/usr/local/bin/cntr"
ln -s /opt/cntr/bin/mount.fuse.cntrfs "$root/usr/local/sbin/mount.fuse.cntrfs"

# --- the slim containers' program, with symbols, built where a compiler is
mkdir -p "$root/usr/local/lib/cntr-lab"
cp "$here/../provision/slim-app.c" "$root/usr/local/lib/cntr-lab/"
in_root gcc -g -O0 -static -o /usr/local/lib/cntr-lab/slim-app /usr/local/lib/cntr-lab/slim-app.c

# --- the first boot, done now
in_root systemd-sysusers
rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id"
in_root systemd-machine-id-setup >/dev/null
in_root systemd-hwdb update >/dev/null 2>&1 || true
in_root ldconfig
: >"$root/etc/.updated"
: >"$root/var/.updated"

# --- nothing of the building machine stays: its mirror, its proxy, its resolver, its logs
# shellcheck source=/etc/os-release
suite=$(. "$root/etc/os-release" && echo "$VERSION_CODENAME")
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
echo "# The box has what its scenarios need; for more, name a mirror here (suite: $suite)." >"$root/etc/apt/sources.list"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/apt "$root"/var/log/*.log \
    "$root"/var/log/bootstrap.log "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/*
