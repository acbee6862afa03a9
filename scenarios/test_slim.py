"""The paper's split, end to end: a slim nginx made from a fat one, loaded, run, and attached to with the fat image as
tools.
"""

import pytest
from conftest import BASE

# The fat image: nginx, and programs of the machine that nginx never starts.
FAT = r"""
set -e
root=$(mktemp -d)
for program in nginx busybox strace; do
    file=$(readlink -f "$(command -v $program)")
    install -D "$file" "$root/usr/bin/$program"
    { ldd "$file" || true; } | grep -o '/[^ ]*' | while read -r library; do
        [ -e "$root$library" ] || install -D "$library" "$root$library"
    done
done
for library in /lib/*/libnss_files.so.2; do # before glibc 2.34 getpwnam(3) loads it, and ldd doesn't know
    [ ! -e "$library" ] || install -D "$library" "$root$library"
done
mkdir -p "$root/etc/nginx" "$root/srv/www" "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/var/lib/nginx" "$root/var/log/nginx"
install -d -m 1777 "$root/tmp"
ln -s ../usr/bin/busybox "$root/bin/sh"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'daemon off; user nobody nogroup; pid /tmp/pid; error_log stderr;\n' >"$root/etc/nginx/nginx.conf"
printf 'events {} http { access_log off; server { listen 8080; root /srv/www; } }\n' >>"$root/etc/nginx/nginx.conf"
echo 'hello from nginx' >"$root/srv/www/index.html"
tar -C "$root" -c . | docker import -c 'CMD ["nginx", "-c", "/etc/nginx/nginx.conf"]' -c 'EXPOSE 8080' - lab/nginx:1
rm -rf "$root"
"""


@pytest.fixture
def slim_nginx(machine):
    """The container `nginx` of the slim image, loaded from its archive."""
    machine.succeed(FAT, timeout=120)
    try:
        machine.succeed("cntr slim docker:lab/nginx:1 --http 8080 -o /tmp/lab-slim.tar -t lab/nginx:slim", timeout=240)
        machine.succeed("docker load -i /tmp/lab-slim.tar", timeout=120)
        machine.succeed("docker run -d --name nginx --network none lab/nginx:slim", timeout=60)
        yield "docker:nginx"
    finally:
        machine.run(
            "docker rm -f nginx; docker rmi -f lab/nginx:slim lab/nginx:1; rm -f /tmp/lab-slim.tar; cntr cache clear"
        )


@pytest.mark.engines("docker")
@pytest.mark.tool("nginx")
@pytest.mark.tool("strace")
def test_a_slim_nginx(cntr, machine, slim_nginx):
    """`cntr slim`, `docker load`, `cntr attach`: what the split left out is available beside the slim container."""
    gone = machine.run("cntr slim diff docker:lab/nginx:1 docker:lab/nginx:slim")
    assert gone.returncode == 1
    assert {"- /usr/bin/busybox", "- /usr/bin/strace"} <= set(gone.stdout.splitlines())
    assert cntr.attach(slim_nginx, f"ls {BASE}/usr/bin") == "nginx"
    tools = "--tools image:docker:lab/nginx:1"
    ask = "busybox wget -q -O - http://127.0.0.1:8080/"
    assert cntr.attach(slim_nginx, ask, options=tools, timeout=90) == "hello from nginx"
    said = cntr.attach(slim_nginx, f"busybox ls {BASE}/usr/bin; strace -V", options=tools, timeout=90)
    assert said.startswith("nginx\nstrace -- version")
