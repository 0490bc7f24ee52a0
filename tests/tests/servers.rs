//! Real servers whose protocols are not HTTP, each with a client of its own: most speak first, all must be served without a
//! declared protocol, by a caller on the same node and on another, permissive and strict, and outside strict's reach refused.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use weft::sandbox::{Pod, Sandbox};
use weft_tests::{LIMIT, Mesh, client_script, python};

/// A server and how it is asked. `DATA` is a directory of the server's own, `HOST` and `PORT` where a client calls.
struct Server {
    name: &'static str,
    port: u16,
    /// Shell command that prepares `DATA`.
    prepare: &'static str,
    /// Shell command that becomes the server.
    run: String,
    /// Shell command that succeeds and prints `answer`.
    ask: String,
    answer: String,
}

/// What the databases return: more than fits into a socket's buffers or a segment.
fn long() -> String {
    "x".repeat(70_000)
}

fn servers() -> Result<Vec<Server>> {
    let (python, smtp, mongo) = (python()?, client_script("smtp.py"), client_script("mongo.py"));
    let ferretdb = std::env::var("WEFT_TEST_FERRETDB")
        .context("WEFT_TEST_FERRETDB is not set: run the tests with ./dev e2e")?;
    let bin = "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)";
    Ok(vec![
        Server {
            name: "postgresql",
            port: 5432,
            prepare: "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); chown postgres DATA; \
                      su postgres -c \"$bin/initdb -D DATA -A trust >/dev/null\"; \
                      echo 'host all all 0.0.0.0/0 trust' >> DATA/pg_hba.conf",
            run: format!(
                "{bin}; exec setpriv --reuid postgres --regid postgres --clear-groups $bin/postgres -D DATA \
                 -c listen_addresses='*' -c unix_socket_directories=DATA -c fsync=off"
            ),
            ask: "psql -h HOST -p PORT -U postgres -At -c \
                  \"select sum(n)||'-'||repeat('x', 70000) from generate_series(1,1000) n\""
                .into(),
            answer: format!("500500-{}", long()),
        },
        Server {
            name: "mariadb",
            port: 3306,
            prepare: "mariadb-install-db --datadir=DATA --user=root --auth-root-authentication-method=normal \
                      --skip-test-db >/dev/null; printf '%s\\n' 'use mysql;' 'flush privileges;' \
                      \"grant all on *.* to mesh@'%' identified by 'mesh';\" \
                      | mariadbd --no-defaults --user=root --datadir=DATA --bootstrap",
            run: "exec mariadbd --no-defaults --user=root --datadir=DATA --socket=DATA/socket --port=3306 \
                  --skip-name-resolve"
                .into(),
            ask: "mariadb --no-defaults -h HOST -P PORT -umesh -pmesh -N -e \
                  \"with recursive s as (select 1 as n union all select n + 1 from s where n < 1000) \
                  select concat(sum(n), '-', repeat('x', 70000)) from s\""
                .into(),
            answer: format!("500500-{}", long()),
        },
        Server {
            name: "redis",
            port: 6379,
            prepare: "",
            run: "exec redis-server --port 6379 --bind '*' --protected-mode no --save '' --dir DATA".into(),
            ask: "redis-cli -h HOST -p PORT --no-raw eval \"return string.rep('x', 70000)\" 0".into(),
            answer: long(),
        },
        Server {
            name: "smtp",
            port: 25,
            prepare: "",
            run: format!("exec {python} {smtp} 25"),
            ask: "swaks --server HOST --port PORT --from a@shop.test --to b@shop.test --body \
                  \"$(head -c 50000 /dev/zero | tr '\\0' x | fold -w 70)\""
                .into(),
            answer: "250 taken".into(),
        },
        Server {
            name: "ferretdb",
            port: 27017,
            prepare: "",
            run: format!("exec {ferretdb} :27017 DATA"),
            ask: format!("{python} {mongo} HOST PORT"),
            answer: "sum 499500".into(),
        },
    ])
}

impl Server {
    fn shell(command: &str, data: &Path) -> String {
        format!("set -e; {}", command.replace("DATA", &data.to_string_lossy()))
    }

    fn start(&self, mesh: &mut Mesh, pod: &Pod) -> Result<()> {
        let data = mesh.sandbox.dir().join(self.name);
        std::fs::create_dir(&data)?;
        // PostgreSQL gives up root, and must still reach its directory.
        let open = format!("chmod 755 {}", mesh.sandbox.dir().display());
        mesh.sandbox.exec(pod, &["sh", "-c", &open], LIMIT)?.ok()?;
        let prepare = Self::shell(self.prepare, &data);
        mesh.sandbox.exec(pod, &["bash", "-c", &prepare], LIMIT * 2)?.ok().context(self.name)?;
        mesh.serve(pod, self.name, &["bash", "-c", &Self::shell(&self.run, &data)], self.port)
    }

    /// Whether it answers as it should; what was said is the error if not.
    fn asked(&self, mesh: &Mesh, pod: &Pod, host: &str, port: u16) -> Result<()> {
        let ask = self.ask.replace("HOST", host).replace("PORT", &port.to_string());
        let said = mesh.sandbox.exec(pod, &["bash", "-c", &ask], LIMIT)?;
        let (code, bytes) = (said.code, said.stdout.len());
        let begin: String = said.stdout.chars().take(200).collect();
        ensure!(
            code == 0 && said.stdout.contains(&self.answer),
            "{ask}: code {code}, {bytes} bytes: {begin} {}",
            said.stderr
        );
        Ok(())
    }
}

/// Ports of each Service: one whose protocol nobody declared, and one declared opaque.
const WAYS: [(&str, u16); 2] = [("undeclared", 1), ("opaque", 2)];

#[test]
fn real_servers_answer_their_own_clients() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let callers = [mesh.pod(1, "same-1")?, mesh.pod(0, "web-1")?];
    let stranger = mesh.pod_in(0, "outside", "stranger")?;
    let mut pods = Vec::new();
    for server in servers()? {
        let pod = mesh.pod(1, &format!("{}-1", server.name))?;
        server.start(&mut mesh, &pod)?;
        let ports = [(WAYS[0].0, WAYS[0].1, server.port, ""), (WAYS[1].0, WAYS[1].1, server.port, "tcp")];
        let ip = mesh.service(server.name, &ports, &[&pod])?.to_string();
        pods.push((server, pod, ip));
    }
    for mode in ["permissive", "strict"] {
        mesh.set_mode(mode)?;
        for (server, pod, ip) in &pods {
            let outside = || server.asked(&mesh, &stranger, &pod.ip.to_string(), server.port);
            Sandbox::wait_until(&format!("{}: {mode} to be in effect", server.name), LIMIT, || {
                outside().is_ok() == (mode == "permissive")
            })
            .with_context(|| format!("{:?}", outside()))?;
            for (caller, place) in callers.iter().zip(["the same node", "another node"]) {
                for (way, port) in WAYS {
                    let asked = server.asked(&mesh, caller, ip, port);
                    asked.with_context(|| format!("{} from {place}, {mode}, {way}", server.name))?;
                }
                let asked = server.asked(&mesh, caller, &pod.ip.to_string(), server.port);
                asked.with_context(|| format!("{} from {place}, {mode}, the pod itself", server.name))?;
            }
            let identity = format!("spiffe://cluster.local/ns/shop/sa/{}", server.name);
            mesh.log_line(0, &["\"mesh\"", &identity])?;
        }
    }
    Ok(())
}

/// What a caller without a client library sees: a banner before its first word, an answer, and the end of the connection.
#[test]
fn a_server_that_speaks_first_says_its_last_word_too() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, mail) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "mail-1")?);
    let ip = mesh.service("mail", &[("smtp", 25, 2525, "")], &[&mail])?.to_string();
    let nc = format!("printf 'QUIT\\r\\n' | nc -w 5 {ip} 25");
    for mode in ["permissive", "strict"] {
        mesh.set_mode(mode)?;
        let said = || mesh.sandbox.exec(&web, &["sh", "-c", &nc], LIMIT);
        Sandbox::wait_until("banner and farewell", LIMIT, || {
            said().is_ok_and(|s| s.code == 0 && s.stdout == "220 mail-1 ready\r\n221 bye\r\n")
        })
        .with_context(|| format!("{mode}: {:?}", said()))?;
    }
    Ok(())
}

/// DNS: what goes over UDP is left alone, and over TCP it is carried like all else. The resolver stands outside the mesh, as
/// the cluster's does, and in it.
#[test]
fn names_are_resolved_over_udp_and_tcp() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let mut resolvers = Vec::new();
    for (node, namespace) in [(0, "outside"), (1, "outside"), (0, "shop"), (1, "shop")] {
        let pod = mesh.pod_in(node, namespace, &format!("dns{node}-1"))?;
        // More than a datagram without EDNS may carry, so that the answer is cut there and asked for again over TCP.
        let many: Vec<_> = (0..60).map(|n| format!("--host-record=many.shop.test,10.9.8.{n}")).collect();
        let mut argv = vec![
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--host-record=one.shop.test,10.9.9.9",
        ];
        argv.extend(many.iter().map(String::as_str));
        mesh.serve(&pod, "dns", &argv, 53)?;
        resolvers.push(pod);
    }
    for mode in ["permissive", "strict"] {
        mesh.set_mode(mode)?;
        for pod in &resolvers {
            for server in [pod.ip.to_string(), pod.ip6.to_string()] {
                let dig = |args: &[&str]| -> Result<String> {
                    let at = format!("@{server}");
                    let argv = [&["dig", &at, "+short", "+tries=3", "+time=5"], args].concat();
                    mesh.sandbox.exec(&web, &argv, LIMIT)?.ok()
                };
                let what = |how: &str| format!("{} at {server}, {mode}, {how}", pod.key);
                for how in ["+notcp", "+tcp"] {
                    let said = dig(&[how, "one.shop.test"]).with_context(|| what(how))?;
                    ensure!(said.trim() == "10.9.9.9", "{}: {said}", what(how));
                }
                let cut = dig(&["+notcp", "+noedns", "+ignore", "many.shop.test"])?;
                let whole = dig(&["+noedns", "many.shop.test"])?;
                ensure!(cut.lines().count() < 60 && whole.lines().count() == 60, "{}: {whole}", what("cut"));
            }
        }
        // Over TCP only, and a resolver in the mesh by mutual TLS.
        mesh.log_line(0, &[&format!("{}:53\"", resolvers[3].ip), "sa/dns1"])?;
    }
    Ok(())
}
