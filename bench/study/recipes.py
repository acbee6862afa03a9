"""The images of the study: applications in a language, databases, and the servers that most images are."""

from __future__ import annotations

from bench.study.recipe import Recipe
from bench.study.services import SERVICES

FLASK = """from flask import Flask, jsonify, render_template
app = Flask(__name__)


@app.route("/")
def index():
    return render_template("index.html", name="slim")


@app.route("/json")
def numbers():
    return jsonify(answer=42)


@app.route("/db")
def database():
    import sqlite3
    with sqlite3.connect("/tmp/x.db") as db:
        db.execute("create table if not exists t (a)")
        db.execute("insert into t values (1)")
        return str(db.execute("select count(*) from t").fetchone()[0] > 0)


@app.errorhandler(404)
def missing(error):
    return "no such page", 404


if __name__ == "__main__":
    app.run("0.0.0.0", 5000)
"""
EXPRESS = """const express = require('express');
const app = express();
app.get('/', (req, res) => res.send('hello from express'));
app.get('/zip', (req, res) => { require('zlib').gzip('x'.repeat(100), (e, b) => res.send(String(b.length < 100))); });
app.get('/hash', (req, res) => res.send(require('crypto').createHash('sha256').update('x').digest('hex')));
app.listen(3000);
"""
JAVA = """import com.sun.net.httpserver.*;
import java.net.InetSocketAddress;
import java.nio.file.*;
public class Main {
    public static void main(String[] a) throws Exception {
        HttpServer s = HttpServer.create(new InetSocketAddress(8080), 0);
        s.createContext("/", x -> answer(x, "hello from java"));
        s.createContext("/date", x -> answer(x, java.time.ZonedDateTime.now(java.time.ZoneId.of("Europe/Berlin")).toString()));
        s.createContext("/hash", x -> { try {
            answer(x, String.valueOf(java.security.MessageDigest.getInstance("SHA-256").digest(new byte[1]).length));
        } catch (Exception e) { throw new RuntimeException(e); } });
        s.start();
    }
    static void answer(HttpExchange x, String t) throws java.io.IOException {
        byte[] b = t.getBytes(); x.sendResponseHeaders(200, b.length); x.getResponseBody().write(b); x.close();
    }
}
"""
STATIC = """#include <netinet/in.h>
#include <unistd.h>
#include <string.h>
int main(void) {
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(8000) };
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bind(s, (struct sockaddr *)&a, sizeof a); listen(s, 16);
    for (;;) {
        int c = accept(s, 0, 0); char b[4096]; const char *r = "HTTP/1.0 200 OK\\r\\nContent-Length: 7\\r\\n\\r\\nstatic\\n";
        if (c < 0) continue;
        read(c, b, sizeof b); write(c, r, strlen(r)); close(c);
    }
}
"""
POSTGRES = """#!/bin/sh
set -e
DATA=/var/lib/postgresql/data
BIN=/usr/lib/postgresql/15/bin
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$DATA" && chown postgres:postgres "$DATA" && chmod 700 "$DATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$DATA/PG_VERSION" ]; then
    "$BIN/initdb" -D "$DATA" --auth=trust >/dev/null
fi
exec "$BIN/postgres" -D "$DATA" -c unix_socket_directories=/tmp -c listen_addresses=0.0.0.0
"""
SQL = ["mariadb", "-N", "-e"]
MARIADB = """#!/bin/sh
set -e
mkdir -p /run/mysqld && chown mysql:mysql /run/mysqld /var/lib/mysql
[ -d /var/lib/mysql/mysql ] || mariadb-install-db --user=mysql --datadir=/var/lib/mysql >/dev/null
exec mariadbd --user=mysql --datadir=/var/lib/mysql --bind-address=0.0.0.0
"""
RUBY = """require 'webrick'
server = WEBrick::HTTPServer.new(Port: 4567, BindAddress: '0.0.0.0')
server.mount_proc('/') { |_, answer| answer.body = 'hello from ruby' }
server.mount_proc('/json') { |_, answer| require 'json'; answer.body = JSON.generate(answer: 42) }
server.mount_proc('/time') { |_, answer| require 'time'; answer.body = Time.parse('2026-01-02').iso8601 }
trap('TERM') { server.shutdown }
server.start
"""
PERL = """use strict;
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 5001, Listen => 5, ReuseAddr => 1) or die;
$SIG{TERM} = sub { exit 0 };
while (my $client = $server->accept) {
    my $line = <$client> // ''; while (defined(my $l = <$client>)) { last if $l =~ /^\\s*$/ }
    my $body = 'hello from perl';
    if ($line =~ m{/digest}) { require Digest::MD5; $body = Digest::MD5::md5_hex('x') }
    if ($line =~ m{/json}) { require JSON::PP; $body = JSON::PP::encode_json({ answer => 42 }) }
    print $client "HTTP/1.0 200 OK\\r\\nContent-Length: " . length($body) . "\\r\\n\\r\\n$body"; close $client;
}
"""
PSQL = ["psql", "-h", "/tmp", "-U", "postgres", "-Atc"]

RECIPES = (
    Recipe(
        *("static", "hello-world", "", ["/server"], (("http", 8000, "/", "static"),)),
        held_back=(("http", 8000, "/other", "static"),),
        setup="gcc -O2 -static -o /server /tmp/server.c && rm /tmp/server.c",
        files={"/tmp/server.c": STATIC},
        build_packages="SCRATCH gcc libc6-dev",
        config={"ExposedPorts": {"8000/tcp": {}}},
    ),
    Recipe(
        *("nginx", "nginx", "nginx", ["nginx", "-g", "daemon off;"], (("http", 80, "/", "Welcome to nginx"),)),
        held_back=(("http", 80, "/50x.html", "An error occurred"), ("exec", ["nginx", "-t"], "")),
        setup="ln -sf /dev/stdout /var/log/nginx/access.log; ln -sf /dev/stderr /var/log/nginx/error.log",
        files={"/usr/share/nginx/html/50x.html": "An error occurred\n", "/etc/nginx/sites-enabled/extra": ""},
        config={"ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"},
    ),
    Recipe(
        *("redis", "redis", "redis-server", ["redis-server", "--protected-mode", "no"]),
        probe=(("say", 6379, "PING\r\n", "+PONG"), ("say", 6379, "SET a 1\r\nGET a\r\n", "$1\r\n1")),
        held_back=(
            ("say", 6379, 'EVAL "return 41 + 1" 0\r\n', ":42"),
            ("say", 6379, "BGSAVE\r\n", "saving"),
            ("exec", ["redis-cli", "DBSIZE"], ""),
        ),
        config={"ExposedPorts": {"6379/tcp": {}}, "User": "redis", "WorkingDir": "/var/lib/redis"},
    ),
    Recipe(
        *("flask", "python (flask)", "python3-flask", ["python3", "app.py"], (("http", 5000, "/", "hello slim"),)),
        held_back=(("http", 5000, "/json", "42"), ("http", 5000, "/db", "True")),
        files={"/app/app.py": FLASK, "/app/templates/index.html": "hello {{ name }}\n"},
        config={"ExposedPorts": {"5000/tcp": {}}, "WorkingDir": "/app"},
    ),
    Recipe(
        *("node", "node (express)", "nodejs node-express", ["node", "server.js"]),
        probe=(("http", 3000, "/", "hello from express"),),
        held_back=(("http", 3000, "/zip", "true"), ("http", 3000, "/hash", "2d711642b726b044")),
        files={"/app/server.js": EXPRESS, "/app/package.json": '{"dependencies": {"express": "*"}}\n'},
        config={
            "ExposedPorts": {"3000/tcp": {}},
            "WorkingDir": "/app",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NODE_PATH=/usr/share/nodejs"],
        },
    ),
    Recipe(
        *("java", "eclipse-temurin", "openjdk-17-jre-headless", ["java", "-cp", "/app", "Main"]),
        probe=(("http", 8080, "/", "hello from java"),),
        held_back=(("http", 8080, "/date", "Europe/Berlin"), ("http", 8080, "/hash", "32")),
        files={"/app/Main.java": JAVA},
        setup="javac -d /app /app/Main.java && rm /app/Main.java",
        build_packages="openjdk-17-jdk-headless",
        config={"ExposedPorts": {"8080/tcp": {}}},
    ),
    Recipe(
        *("php", "php (apache)", "apache2 libapache2-mod-php", ["apache2ctl", "-D", "FOREGROUND"]),
        probe=(("http", 80, "/index.php", "3 4 5"),),
        held_back=(("http", 80, "/other.php", "2026-01-02"), ("http", 80, "/", "3 4 5")),
        files={
            "/etc/apache2/conf-enabled/index.conf": "DirectoryIndex index.php\nServerName localhost\n",
            "/var/www/html/index.php": '<?php echo implode(" ", array_map(fn($x) => $x + 2, [1, 2, 3]));\n',
            "/var/www/html/other.php": '<?php date_default_timezone_set("Europe/Berlin"); echo json_encode(date("Y-m-d", 1767312000));\n',
        },
        config={"ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGWINCH"},
    ),
    Recipe(
        *("postgres", "postgres", "postgresql-15", ["/entrypoint.sh"]),
        probe=(
            ("exec", [*PSQL, "create table if not exists t (a int)"], "CREATE"),
            ("exec", [*PSQL, "insert into t values (42)"], "INSERT"),
            ("exec", [*PSQL, "select max(a) from t"], "42"),
        ),
        held_back=(
            ("exec", [*PSQL, "select count(*) > 3 from pg_tables"], "t"),
            ("exec", [*PSQL, "select to_tsvector('english', 'the cats ran')"], "cat"),
            ("exec", [*PSQL, "select now() at time zone 'Europe/Berlin' is not null"], "t"),
            ("exec", [*PSQL, "do $$ begin perform 1; end $$ language plpgsql"], "DO"),
        ),
        files={"/entrypoint.sh": POSTGRES},
        setup="chmod 755 /entrypoint.sh",
        config={
            "ExposedPorts": {"5432/tcp": {}},
            "Volumes": {"/var/lib/postgresql/data": {}},
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin"],
        },
    ),
    Recipe(
        *("memcached", "memcached", "memcached", ["memcached", "-u", "memcache"]),
        probe=(("say", 11211, "set a 0 0 1\r\n1\r\nget a\r\n", "VALUE a 0 1"),),
        held_back=(("say", 11211, "stats\r\n", "STAT curr_items"), ("say", 11211, "incr b 1\r\n", "NOT_FOUND")),
        config={"ExposedPorts": {"11211/tcp": {}}},
    ),
    Recipe(
        *("httpd", "httpd", "apache2", ["apache2ctl", "-D", "FOREGROUND"], (("http", 80, "/", "It works"),)),
        held_back=(("http", 80, "/icons/README", "Public Domain"), ("exec", ["apache2", "-v"], "Apache")),
        files={"/etc/apache2/conf-enabled/name.conf": "ServerName localhost\n"},
        config={"ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGWINCH"},
    ),
    Recipe(
        *("haproxy", "haproxy", "haproxy", ["haproxy", "-W", "-db", "-f", "/etc/haproxy/study.cfg"]),
        probe=(("http", 8404, "/stats", "Statistics Report"),),
        held_back=(
            ("http", 8404, "/stats;csv", "pxname"),
            ("exec", ["haproxy", "-c", "-f", "/etc/haproxy/study.cfg"], "valid"),
        ),
        files={
            "/etc/haproxy/study.cfg": "defaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n"
            "frontend f\n bind *:8404\n stats enable\n stats uri /stats\n"
        },
        config={"ExposedPorts": {"8404/tcp": {}}},
    ),
    Recipe(
        *("lighttpd", "lighttpd", "lighttpd", ["lighttpd", "-D", "-f", "/etc/lighttpd/lighttpd.conf"]),
        probe=(("http", 80, "/index.html", "hello from lighttpd"),),
        held_back=(("http", 80, "/other.txt", "other"),),
        files={"/var/www/html/index.html": "hello from lighttpd\n", "/var/www/html/other.txt": "other\n"},
        config={"ExposedPorts": {"80/tcp": {}}},
    ),
    Recipe(
        *(
            "mosquitto",
            "eclipse-mosquitto",
            "mosquitto mosquitto-clients",
            ["mosquitto", "-c", "/etc/mosquitto/study.conf"],
        ),
        probe=(("exec", ["mosquitto_pub", "-t", "a", "-m", "hello", "-r"], ""),),
        held_back=(("exec", ["mosquitto_sub", "-t", "a", "-C", "1"], "hello"),),
        files={"/etc/mosquitto/study.conf": "listener 1883\nallow_anonymous true\n"},
        config={"ExposedPorts": {"1883/tcp": {}}},
    ),
    Recipe(
        *("mariadb", "mariadb", "mariadb-server", ["/entrypoint.sh"]),
        probe=(
            ("exec", [*SQL, "create database if not exists d; create table if not exists d.t (a int)"], ""),
            ("exec", [*SQL, "insert into d.t values (42); select max(a) from d.t"], "42"),
        ),
        held_back=(
            ("exec", [*SQL, "select json_extract('[1, 2]', '$[1]')"], "2"),
            ("exec", [*SQL, "select count(*) > 0 from information_schema.tables"], "1"),
            ("exec", [*SQL, "select convert('ä' using latin1) is not null"], "1"),
        ),
        files={"/entrypoint.sh": MARIADB},
        setup="chmod 755 /entrypoint.sh",
        config={"ExposedPorts": {"3306/tcp": {}}, "Volumes": {"/var/lib/mysql": {}}},
    ),
    Recipe(
        *("ruby", "ruby (webrick)", "ruby ruby-webrick", ["ruby", "app.rb"], (("http", 4567, "/", "hello from ruby"),)),
        held_back=(("http", 4567, "/json", "42"), ("http", 4567, "/time", "2026")),
        files={"/app/app.rb": RUBY},
        config={"ExposedPorts": {"4567/tcp": {}}, "WorkingDir": "/app"},
    ),
    Recipe(
        *("perl", "perl", "perl", ["perl", "app.pl"], (("http", 5001, "/", "hello from perl"),)),
        held_back=(("http", 5001, "/digest", "9dd4e461268c8034"), ("http", 5001, "/json", "42")),
        files={"/app/app.pl": PERL},
        config={"ExposedPorts": {"5001/tcp": {}}, "WorkingDir": "/app"},
    ),
    Recipe(
        *("python", "python", "python3", ["python3", "-m", "http.server", "8000", "-d", "/srv"]),
        probe=(("http", 8000, "/page.html", "hello from python"),),
        held_back=(
            ("http", 8000, "/", "Directory listing"),
            ("exec", ["python3", "-c", "import json; print(json.dumps([1]))"], "[1]"),
        ),
        files={"/srv/page.html": "hello from python\n"},
        config={"ExposedPorts": {"8000/tcp": {}}},
    ),
    Recipe(
        *("unbound", "unbound", "unbound", ["unbound", "-d", "-c", "/etc/unbound/study.conf"]),
        probe=(
            (
                "say",
                53,
                "\x00\x1b\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04slim\x04test\x00\x00\x01\x00\x01",
                "slim",
            ),
        ),
        held_back=(("exec", ["unbound-checkconf", "/etc/unbound/study.conf"], "no errors"),),
        files={
            "/etc/unbound/study.conf": 'server:\n chroot: ""\n interface: 0.0.0.0\n access-control: 0.0.0.0/0 allow\n do-ip6: no\n'
            ' use-syslog: no\n local-zone: "test." static\n local-data: "slim.test. A 10.0.0.1"\n'
        },
        config={"ExposedPorts": {"53/tcp": {}}},
    ),
    Recipe(
        *("tomcat", "tomcat", "tomcat10 openjdk-17-jre-headless", ["/usr/share/tomcat10/bin/catalina.sh", "run"]),
        probe=(("http", 8080, "/hello.jsp", "hello from tomcat"),),
        held_back=(("http", 8080, "/sum.jsp", "42"),),
        files={
            "/var/lib/tomcat10/webapps/ROOT/hello.jsp": '<%= "hello from " + "tomcat" %>\n',
            "/var/lib/tomcat10/webapps/ROOT/sum.jsp": "<%= 40 + 2 %>\n",
        },
        config={
            "ExposedPorts": {"8080/tcp": {}},
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                *("CATALINA_HOME=/usr/share/tomcat10", "CATALINA_BASE=/var/lib/tomcat10"),
            ],
        },
    ),
    *SERVICES,
)
BY_NAME = {recipe.name: recipe for recipe in RECIPES}
