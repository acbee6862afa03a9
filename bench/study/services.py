"""More images of the study: small servers of every kind, and web frameworks, one package or two each."""

from __future__ import annotations

from typing import Any

from bench.study.recipe import Recipe, Step

BIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _on(port: int, **more: Any) -> dict[str, Any]:
    """An image's configuration with one port."""
    return {"ExposedPorts": {f"{port}/tcp": {}}, **more}


def _dns(name: str) -> Step:
    """A query for NAME's address, over TCP."""
    labels = "".join(f"{chr(len(label))}{label}" for label in name.split("."))
    query = f"\x00\x1b\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00{labels}\x00\x00\x01\x00\x01"
    return ("say", 53, f"\x00{chr(len(query))}{query}", name.partition(".")[0])


def _get(port: int, url: str, text: str) -> Step:
    """A proxy's GET."""
    host = url.split("/")[2]
    return ("say", port, f"GET {url} HTTP/1.0\r\nHost: {host}\r\n\r\n", text)


ZONE = """$TTL 60
@ SOA ns.slim.test. root.slim.test. 1 60 60 60 60
@ NS ns
ns A 10.0.0.1
slim A 10.0.0.2
"""
NAMED = """options { directory "/var/cache/bind"; listen-on { any; }; recursion no; };
zone "test" { type master; file "/etc/bind/db.test"; };
"""
VCL = """vcl 4.1;
backend default none;
sub vcl_recv { if (req.url == "/other") { return (synth(200, "other")); } return (synth(200, "hello from varnish")); }
"""
DJANGO = """import sys
from django.conf import settings
from django.http import HttpResponse, JsonResponse
from django.urls import path
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False, TEMPLATES=[
    {"BACKEND": "django.template.backends.django.DjangoTemplates"}])


def template(request):
    from django.template import Context, Template
    return HttpResponse(Template("{{ word|upper }}").render(Context({"word": "slim"})))


urlpatterns = [
    path("", lambda request: HttpResponse("hello from django")),
    path("json", lambda request: JsonResponse({"answer": 42})),
    path("template", template),
]
if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", "0.0.0.0:8000"])
"""
WSGI = """def application(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"hello from wsgi"
    if path == "/json":
        import json
        body = json.dumps({"answer": 42}).encode()
    if path == "/hash":
        import hashlib
        body = hashlib.md5(b"x").hexdigest().encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
FASTAPI = """from fastapi import FastAPI
from pydantic import BaseModel
app = FastAPI()


class Sum(BaseModel):
    one: int
    two: int


@app.get("/")
def index():
    return {"hello": "fastapi"}


@app.get("/sum")
def total(one: int, two: int):
    return {"sum": Sum(one=one, two=two).one + two}
"""
TORNADO = """import asyncio
import tornado.web


class Main(tornado.web.RequestHandler):
    def get(self):
        self.write("hello from tornado")


class Escaped(tornado.web.RequestHandler):
    def get(self):
        self.write(tornado.escape.xhtml_escape("<"))


async def main():
    tornado.web.Application([("/", Main), ("/escape", Escaped)]).listen(8888)
    await asyncio.Event().wait()

asyncio.run(main())
"""
HTTP_JS = """const http = require('http');
http.createServer((req, res) => {
  if (req.url === '/url') return res.end(new URL('http://a/b?c=42').searchParams.get('c'));
  if (req.url === '/fs') return res.end(String(require('fs').existsSync('/etc/passwd')));
  res.end('hello from node');
}).listen(3000);
process.on('SIGTERM', () => process.exit(0));
"""
RACK = """app = proc do |env|
  body = env['PATH_INFO'] == '/json' ? (require 'json'; JSON.generate(answer: 42)) : 'hello from rack'
  [200, { 'content-type' => 'text/plain' }, [body]]
end
run app
"""
SINATRA = """require 'sinatra'
set :bind, '0.0.0.0'
set :port, 4567
get('/') { 'hello from sinatra' }
get('/erb') { erb '<%= 40 + 2 %>' }
"""
MOJO = """use Mojolicious::Lite -signatures;
get '/' => sub ($c) { $c->render(text => 'hello from mojolicious') };
get '/json' => sub ($c) { $c->render(json => { answer => 42 }) };
get '/page' => 'page';
app->start;
__DATA__
@@ page.html.ep
<%= 'slim' x 2 %>
"""
LUA = """local socket = require 'socket'
local server = assert(socket.bind('*', 8000))
while true do
  local client = server:accept()
  local line = client:receive()
  local body = line and line:find('/upper') and string.upper('slim') or 'hello from lua'
  client:send('HTTP/1.0 200 OK\\r\\nContent-Length: ' .. #body .. '\\r\\n\\r\\n' .. body)
  client:close()
end
"""
ERLANG = (
    'inets:start(), {ok, _} = inets:start(httpd, [{port, 8000}, {server_name, "slim"}, {server_root, "/tmp"}, '
    '{document_root, "/srv"}, {bind_address, any}]).'
)
SQUID = "http_port 3128\nhttp_access allow all\ncache_log /dev/stderr\naccess_log none\npid_filename none\n"
GIT = "git init -q --bare /srv/a.git && touch /srv/a.git/git-daemon-export-ok"
FPM = "#!/bin/sh\nphp-fpm8.2 -F &\nexec nginx -g 'daemon off;'\n"
FPM_SITE = """server {
    listen 80 default_server;
    root /var/www/html;
    location ~ \\.php$ { include snippets/fastcgi-php.conf; fastcgi_pass unix:/run/php/php8.2-fpm.sock; }
}
"""

SERVICES = (
    Recipe(
        *("busybox", "busybox", "busybox-static", ["busybox", "httpd", "-f", "-p", "8000", "-h", "/srv"]),
        probe=(("http", 8000, "/page", "hello from busybox"),),
        held_back=(("http", 8000, "/other", "other"), ("exec", ["busybox", "uname"], "Linux")),
        files={"/srv/page": "hello from busybox\n", "/srv/other": "other\n"},
        config=_on(8000),
    ),
    Recipe(
        *("caddy", "caddy", "caddy", ["caddy", "file-server", "--listen", ":80", "--root", "/srv"]),
        probe=(("http", 80, "/page.html", "hello from caddy"),),
        held_back=(("http", 80, "/other.txt", "other"), ("exec", ["caddy", "version"], "2.")),
        files={"/srv/page.html": "hello from caddy\n", "/srv/other.txt": "other\n"},
        config=_on(80, Env=[f"PATH={BIN}", "HOME=/tmp"]),
    ),
    Recipe(
        *("registry", "registry", "docker-registry", ["docker-registry", "serve", "/etc/docker/study.yml"]),
        probe=(("http", 5000, "/v2/", "{}"),),
        held_back=(("http", 5000, "/v2/_catalog", "repositories"),),
        files={
            "/etc/docker/study.yml": "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /tmp/registry\n"
            "http:\n  addr: :5000\n"
        },
        config=_on(5000),
    ),
    Recipe(
        *("etcd", "etcd (bitnami)", "etcd-server etcd-client", ["etcd", "--data-dir", "/tmp/etcd"]),
        probe=(("http", 2379, "/version", "etcdserver"), ("exec", ["etcdctl", "put", "a", "1"], "OK")),
        held_back=(("http", 2379, "/health", "true"), ("exec", ["etcdctl", "get", "a"], "1")),
        config=_on(2379, Env=[f"PATH={BIN}", "ETCDCTL_API=3"]),
    ),
    Recipe(
        *("prometheus", "prom/prometheus", "prometheus"),
        ["prometheus", "--config.file=/etc/prometheus/study.yml", "--storage.tsdb.path=/tmp/data"],
        probe=(("http", 9090, "/-/ready", "Ready"),),
        held_back=(("http", 9090, "/metrics", "go_goroutines"), ("http", 9090, "/api/v1/query?query=1", "success")),
        files={"/etc/prometheus/study.yml": "global:\n  scrape_interval: 15s\n"},
        config=_on(9090),
    ),
    Recipe(
        *("node-exporter", "prom/node-exporter", "prometheus-node-exporter", ["prometheus-node-exporter"]),
        probe=(("http", 9100, "/metrics", "node_"),),
        held_back=(("http", 9100, "/", "Node Exporter"),),
        config=_on(9100),
    ),
    Recipe(
        *("alertmanager", "prom/alertmanager", "prometheus-alertmanager"),
        [
            "prometheus-alertmanager",
            "--config.file=/etc/prometheus/study.yml",
            "--storage.path=/tmp",
            "--cluster.listen-address=",
        ],
        probe=(("http", 9093, "/-/ready", "OK"),),
        held_back=(("http", 9093, "/api/v2/status", "versionInfo"),),
        files={"/etc/prometheus/study.yml": "route:\n  receiver: none\nreceivers:\n  - name: none\n"},
        config=_on(9093),
    ),
    Recipe(
        *("influxdb", "influxdb", "influxdb", ["influxd"], (("http", 8086, "/query?q=show+databases", "results"),)),
        held_back=(("http", 8086, "/debug/vars", "memstats"),),
        config=_on(8086, User="influxdb"),
    ),
    Recipe(
        *("nats", "nats", "nats-server", ["nats-server", "-m", "8222"], (("say", 4222, "", "INFO"),)),
        held_back=(("http", 8222, "/varz", "server_id"), ("say", 4222, "PING\r\n", "PONG")),
        config=_on(4222),
    ),
    Recipe(
        *("rabbitmq", "rabbitmq", "rabbitmq-server", ["rabbitmq-server"]),
        probe=(("say", 5672, "AMQP\x00\x00\x09\x01", "RabbitMQ"),),
        held_back=(("exec", ["rabbitmqctl", "await_startup"], ""),),
        config=_on(5672, Env=[f"PATH={BIN}", "HOME=/var/lib/rabbitmq", "RABBITMQ_NODENAME=rabbit@localhost"]),
    ),
    Recipe(
        *("beanstalkd", "beanstalkd", "beanstalkd", ["beanstalkd"], (("say", 11300, "stats\r\n", "current-jobs"),)),
        held_back=(("say", 11300, "put 0 0 1 1\r\na\r\n", "INSERTED"),),
        config=_on(11300),
    ),
    Recipe(
        *("gearmand", "gearmand (artefactual)", "gearman-job-server", ["gearmand", "-l", "stderr"]),
        probe=(("say", 4730, "version\n", "OK"),),
        held_back=(("say", 4730, "status\n", "."),),
        config=_on(4730, User="gearman"),
    ),
    Recipe(
        *("bind9", "ubuntu/bind9", "bind9", ["named", "-g", "-c", "/etc/bind/study.conf", "-u", "bind"]),
        probe=(_dns("slim.test"),),
        held_back=(_dns("ns.test"), ("exec", ["named-checkconf", "/etc/bind/study.conf"], "")),
        files={"/etc/bind/study.conf": NAMED, "/etc/bind/db.test": ZONE},
        config=_on(53),
    ),
    Recipe(
        *("nsd", "nsd", "nsd", ["nsd", "-d", "-c", "/etc/nsd/study.conf"], (_dns("slim.test"),)),
        held_back=(_dns("ns.test"), ("exec", ["nsd-checkconf", "/etc/nsd/study.conf"], "")),
        files={
            "/etc/nsd/study.conf": 'server:\n pidfile: ""\n username: nsd\n ip-address: 0.0.0.0\n'
            "remote-control:\n control-enable: no\nzone:\n name: test\n zonefile: /etc/nsd/db.test\n",
            "/etc/nsd/db.test": ZONE,
        },
        config=_on(53),
    ),
    Recipe(
        *("knot", "cznic/knot", "knot", ["knotd", "-c", "/etc/knot/study.conf"], (_dns("slim.test"),)),
        held_back=(_dns("ns.test"), ("exec", ["knotc", "-c", "/etc/knot/study.conf", "conf-check"], "valid")),
        files={
            "/etc/knot/study.conf": "server:\n  listen: 0.0.0.0@53\n  rundir: /tmp\ndatabase:\n  storage: /tmp\n"
            "zone:\n  - domain: test\n    file: /etc/knot/db.test\n    zonefile-sync: -1\n",
            "/etc/knot/db.test": ZONE,
        },
        config=_on(53),
    ),
    Recipe(
        *("dnsmasq", "dnsmasq (jpillora)", "dnsmasq-base", ["dnsmasq", "-k", "-C", "/etc/dnsmasq.conf"]),
        probe=(_dns("slim.test"),),
        held_back=(_dns("other.test"),),
        files={
            "/etc/dnsmasq.conf": "no-resolv\nuser=root\naddress=/slim.test/10.0.0.1\naddress=/other.test/10.0.0.2\n"
        },
        config=_on(53),
    ),
    Recipe(
        *("squid", "ubuntu/squid", "squid", ["squid", "-N", "-f", "/etc/squid/study.conf"]),
        probe=(_get(3128, "http://127.0.0.1:1/", "ERR_CONNECT_FAIL"),),
        held_back=(_get(3128, "http://127.0.0.1:2/", "squid"), ("exec", ["squid", "-v"], "Squid Cache")),
        files={"/etc/squid/study.conf": SQUID},
        config=_on(3128),
    ),
    Recipe(
        *("privoxy", "privoxy", "privoxy", ["privoxy", "--no-daemon", "/etc/privoxy/study"]),
        probe=(_get(8118, "http://p.p/", "Privoxy"),),
        held_back=(_get(8118, "http://p.p/show-status", "configuration"),),
        files={"/etc/privoxy/study": "confdir /etc/privoxy\ntempldir /etc/privoxy/templates\nlisten-address :8118\n"},
        config=_on(8118, User="privoxy"),
    ),
    Recipe(
        *("tinyproxy", "tinyproxy (vimagick)", "tinyproxy-bin", ["tinyproxy", "-d", "-c", "/etc/tinyproxy.conf"]),
        probe=(_get(8888, "http://127.0.0.1:1/", "tinyproxy"),),
        held_back=(_get(8888, "http://tinyproxy.stats/", "tinyproxy"),),
        files={"/etc/tinyproxy.conf": "Port 8888\nTimeout 60\nLogLevel Error\n"},
        config=_on(8888),
    ),
    Recipe(
        *("varnish", "varnish", "varnish", ["varnishd", "-F", "-f", "/etc/varnish/study.vcl", "-a", ":80"]),
        probe=(("http", 80, "/", "hello from varnish"),),
        held_back=(("http", 80, "/other", "other"),),
        files={"/etc/varnish/study.vcl": VCL},
        config=_on(80),
    ),
    Recipe(
        *("openssh", "linuxserver/openssh-server", "openssh-server", ["/usr/sbin/sshd", "-D", "-e"]),
        probe=(("say", 22, "", "SSH-2.0"),),
        held_back=(("exec", ["/usr/sbin/sshd", "-t"], ""),),
        setup="mkdir -p /run/sshd && ssh-keygen -A",
        config=_on(22),
    ),
    Recipe(
        *("vsftpd", "vsftpd (fauria)", "vsftpd", ["vsftpd", "/etc/study.conf"]),
        probe=(("say", 21, "", "220"),),
        held_back=(("say", 21, "USER anonymous\r\nPASS a\r\nSYST\r\n", "215"),),
        setup="mkdir -p /var/run/vsftpd/empty",
        files={"/etc/study.conf": "listen=YES\nbackground=NO\nanonymous_enable=YES\nseccomp_sandbox=NO\n"},
        config=_on(21),
    ),
    Recipe(
        *("dovecot", "dovecot/dovecot", "dovecot-imapd", ["dovecot", "-F"], (("say", 143, "", "Dovecot"),)),
        held_back=(("say", 143, "a CAPABILITY\r\n", "IMAP4rev1"), ("exec", ["doveconf", "-n"], "protocols")),
        config=_on(143),
    ),
    Recipe(
        *("ngircd", "linuxserver/ngircd", "ngircd", ["ngircd", "-n", "-f", "/etc/study.conf"]),
        probe=(("say", 6667, "NICK a\r\nUSER a 0 * :a\r\n", " 001 "),),
        held_back=(("say", 6667, "NICK b\r\nUSER b 0 * :b\r\nJOIN #c\r\n", " 353 "),),
        files={
            "/etc/study.conf": "[Global]\nName = irc.slim.test\nPorts = 6667\n[Options]\nDNS = no\nIdent = no\nPAM = no\n"
        },
        config=_on(6667),
    ),
    Recipe(
        *("rsync", "rsync (vimagick)", "rsync", ["rsync", "--daemon", "--no-detach", "--config=/etc/study.conf"]),
        probe=(("say", 873, "", "@RSYNCD"),),
        held_back=(("exec", ["rsync", "rsync://localhost/srv/"], "page"),),
        files={"/etc/study.conf": "[srv]\npath = /srv\nuid = root\nuse chroot = no\n", "/srv/page": "x\n"},
        config=_on(873),
    ),
    Recipe(
        *("git", "alpine/git", "git", ["git", "daemon", "--reuseaddr", "--base-path=/srv", "--verbose"]),
        probe=(("exec", ["git", "ls-remote", "git://localhost/a.git"], ""),),
        held_back=(("exec", ["git", "--git-dir=/srv/a.git", "count-objects"], "0 objects"),),
        setup=GIT,
        config=_on(9418),
    ),
    Recipe(
        *("subversion", "svn (garethflowers)", "subversion", ["svnserve", "-d", "--foreground", "-r", "/srv"]),
        probe=(("say", 3690, "", "success"),),
        held_back=(("exec", ["svn", "info", "svn://localhost/a"], "Revision: 0"),),
        setup="svnadmin create /srv/a",
        config=_on(3690),
    ),
    Recipe(
        *("socat", "alpine/socat", "socat", ["socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat"]),
        probe=(("say", 7000, "hello\n", "hello"),),
        held_back=(("exec", ["socat", "-V"], "socat version"),),
        config=_on(7000),
    ),
    Recipe(
        *("iperf3", "networkstatic/iperf3", "iperf3", ["iperf3", "-s"]),
        probe=(("exec", ["iperf3", "-c", "127.0.0.1", "-n", "1K"], "receiver"),),
        held_back=(("exec", ["iperf3", "-c", "127.0.0.1", "-n", "1K", "-J"], "end"),),
        config=_on(5201),
    ),
    Recipe(
        *("mini-httpd", "mini-httpd", "mini-httpd", ["mini_httpd", "-D", "-p", "80", "-d", "/srv", "-i", "/tmp/pid"]),
        probe=(("http", 80, "/page.html", "hello from mini"),),
        held_back=(("http", 80, "/other.txt", "other"),),
        files={"/srv/page.html": "hello from mini\n", "/srv/other.txt": "other\n"},
        config=_on(80),
    ),
    Recipe(
        *("webfs", "webfs", "webfs", ["webfsd", "-F", "-p", "8000", "-r", "/srv", "-m", "/etc/mime.types"]),
        probe=(("http", 8000, "/page.html", "hello from webfs"),),
        held_back=(("http", 8000, "/", "page.html"),),
        files={"/srv/page.html": "hello from webfs\n", "/etc/mime.types": "text/html html\n"},
        config=_on(8000),
    ),
    Recipe(
        *("transmission", "linuxserver/transmission", "transmission-daemon"),
        ["transmission-daemon", "-f", "-g", "/tmp/t", "--allowed", "*"],
        probe=(("http", 9091, "/transmission/web/", "Transmission"),),
        held_back=(("http", 9091, "/transmission/web/index.html", "html"),),
        config=_on(9091),
    ),
    Recipe(
        *("php-cli", "php (cli)", "php-cli", ["php", "-S", "0.0.0.0:8000", "-t", "/srv"]),
        probe=(("http", 8000, "/index.php", "hello from php"),),
        held_back=(("http", 8000, "/hash.php", "9dd4e461268c8034"), ("http", 8000, "/plain.txt", "plain")),
        files={
            "/srv/index.php": '<?php echo "hello from php";\n',
            "/srv/hash.php": '<?php echo md5("x"), json_encode([1]);\n',
            "/srv/plain.txt": "plain\n",
        },
        config=_on(8000),
    ),
    Recipe(
        *("php-fpm", "php (fpm), nginx", "nginx php-fpm", ["/entrypoint.sh"], (("http", 80, "/index.php", "5"),)),
        held_back=(("http", 80, "/date.php", "2026"),),
        setup="chmod 755 /entrypoint.sh; mkdir -p /run/php; ln -sf ../sites-available/study /etc/nginx/sites-enabled/default",
        files={
            "/entrypoint.sh": FPM,
            "/etc/nginx/sites-available/study": FPM_SITE,
            "/var/www/html/index.php": "<?php echo array_sum([2, 3]);\n",
            "/var/www/html/date.php": '<?php echo (new DateTime("2026-01-02"))->format("Y");\n',
        },
        config=_on(80),
    ),
    Recipe(
        *("django", "python (django)", "python3-django", ["python3", "app.py"]),
        probe=(("http", 8000, "/", "hello from django"),),
        held_back=(("http", 8000, "/json", "42"), ("http", 8000, "/template", "SLIM")),
        files={"/app/app.py": DJANGO},
        config=_on(8000, WorkingDir="/app"),
    ),
    Recipe(
        *("gunicorn", "python (gunicorn)", "gunicorn", ["gunicorn", "-b", "0.0.0.0:8000", "app:application"]),
        probe=(("http", 8000, "/", "hello from wsgi"),),
        held_back=(("http", 8000, "/json", "42"), ("http", 8000, "/hash", "9dd4e461268c8034")),
        files={"/app/app.py": WSGI},
        config=_on(8000, WorkingDir="/app"),
    ),
    Recipe(
        *("uwsgi", "tiangolo/uwsgi-nginx", "uwsgi-core uwsgi-plugin-python3"),
        ["uwsgi", "--plugin", "python3", "--http-socket", ":8000", "--wsgi-file", "app.py", "--die-on-term"],
        probe=(("http", 8000, "/", "hello from wsgi"),),
        held_back=(("http", 8000, "/json", "42"), ("http", 8000, "/hash", "9dd4e461268c8034")),
        files={"/app/app.py": WSGI},
        config=_on(8000, WorkingDir="/app"),
    ),
    Recipe(
        *("fastapi", "tiangolo/uvicorn-gunicorn-fastapi", "python3-fastapi python3-uvicorn"),
        ["python3", "-m", "uvicorn", "app:app", "--host", "0.0.0.0"],
        probe=(("http", 8000, "/", "fastapi"),),
        held_back=(("http", 8000, "/sum?one=40&two=2", "42"), ("http", 8000, "/openapi.json", "paths")),
        files={"/app/app.py": FASTAPI},
        config=_on(8000, WorkingDir="/app"),
    ),
    Recipe(
        *("tornado", "python (tornado)", "python3-tornado", ["python3", "app.py"]),
        probe=(("http", 8888, "/", "hello from tornado"),),
        held_back=(("http", 8888, "/escape", "&lt;"),),
        files={"/app/app.py": TORNADO},
        config=_on(8888, WorkingDir="/app"),
    ),
    Recipe(
        *("node-http", "node", "nodejs", ["node", "server.js"], (("http", 3000, "/", "hello from node"),)),
        held_back=(("http", 3000, "/url", "42"), ("http", 3000, "/fs", "true")),
        files={"/app/server.js": HTTP_JS},
        config=_on(3000, WorkingDir="/app"),
    ),
    Recipe(
        *("puma", "ruby (puma)", "puma", ["puma", "-b", "tcp://0.0.0.0:9292", "/app/config.ru"]),
        probe=(("http", 9292, "/", "hello from rack"),),
        held_back=(("http", 9292, "/json", "42"),),
        files={"/app/config.ru": RACK},
        config=_on(9292, WorkingDir="/app"),
    ),
    Recipe(
        *("sinatra", "ruby (sinatra)", "ruby-sinatra ruby-webrick", ["ruby", "app.rb"]),
        probe=(("http", 4567, "/", "hello from sinatra"),),
        held_back=(("http", 4567, "/erb", "42"),),
        files={"/app/app.rb": SINATRA},
        config=_on(4567, WorkingDir="/app"),
    ),
    Recipe(
        *(
            "mojolicious",
            "perl (mojolicious)",
            "libmojolicious-perl",
            ["perl", "app.pl", "daemon", "-l", "http://*:3000"],
        ),
        probe=(("http", 3000, "/", "hello from mojolicious"),),
        held_back=(("http", 3000, "/json", "42"), ("http", 3000, "/page", "slimslim")),
        files={"/app/app.pl": MOJO},
        config=_on(3000, WorkingDir="/app"),
    ),
    Recipe(
        *("erlang", "erlang", "erlang-base erlang-inets", ["erl", "-noshell", "-noinput", "-eval", ERLANG]),
        probe=(("http", 8000, "/page.html", "hello from erlang"),),
        held_back=(("http", 8000, "/other.html", "other"),),
        files={"/srv/page.html": "hello from erlang\n", "/srv/other.html": "other\n"},
        config=_on(8000, Env=[f"PATH={BIN}", "HOME=/tmp"]),
    ),
    Recipe(
        *("lua", "lua (nickblah)", "lua5.4 lua-socket", ["lua5.4", "/app/app.lua"]),
        probe=(("http", 8000, "/", "hello from lua"),),
        held_back=(("http", 8000, "/upper", "SLIM"),),
        files={"/app/app.lua": LUA},
        config=_on(8000),
    ),
)
