//! `weft demo`: the whole mesh on one machine, shown step by step.

mod show;
mod wire;

use crate::{
    call::Tally,
    sandbox::{self, EndpointsOf, Options, Pod, PodSpec, Process, Sandbox, service_yaml},
};
use anyhow::{Context, Result, ensure};
use show::Show;
use std::{net::Ipv4Addr, path::PathBuf, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// `weft demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave everything running afterwards, and print how to play with it
    #[arg(long)]
    pub keep: bool,
    /// Where spans go: an OTLP/gRPC endpoint reachable from the nodes' namespaces
    #[arg(long, value_name = "URL", hide = true)]
    pub otlp: Option<String>,
    /// Remove what earlier runs with --keep left, and end
    #[arg(long)]
    pub remove: bool,
    /// Path of the `weft-cni` binary; beside this binary when left out
    #[arg(long, value_name = "FILE")]
    pub weft_cni: Option<PathBuf>,
}

/// The virtual address of the Service `cart`.
const CART: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the demo to its end.
///
/// # Errors
/// At the first thing that is not as promised, saying what was expected and what was seen.
pub fn run(args: &DemoArgs) -> Result<()> {
    if args.remove {
        return sandbox::remove_kept();
    }
    on_interrupt()?;
    let show = Show::new();
    let done = steps(args, &show);
    // What fails because we were asked to stop is no failure to tell of.
    if sandbox::is_interrupted() { Err(sandbox::Interrupted.into()) } else { done }
}

fn steps(args: &DemoArgs, show: &Show) -> Result<()> {
    show.title("Weft demo: two nodes, four pods, one canary");
    let mut sandbox = Sandbox::create(Options {
        keep: args.keep,
        weft_cni: args.weft_cni.clone(),
        agent_env: args.otlp.iter().map(|url| ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), url.clone())).collect(),
        ..Options::default()
    })?;
    let world = World::build(&mut sandbox, show)?;
    world.canary(&sandbox, show)?;
    world.identities(&sandbox, show)?;
    world.wire(&sandbox, show)?;
    world.strict(&sandbox, show)?;
    world.live_edit(&sandbox, show)?;
    if args.keep {
        world.how_to_play(sandbox, show)
    } else {
        drop(world);
        drop(sandbox);
        show.done("All as promised. Everything made for this demo is gone again.");
        Ok(())
    }
}

/// The first Ctrl-C ends whatever the demo waits for (the sandbox cleans up on drop); a second one cleans up from here.
///
/// By handlers, not by a blocked mask: programs that the demo starts would inherit the mask and not end on SIGTERM.
fn on_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if sandbox::interrupt() {
                    sandbox::remove_own();
                    std::process::exit(130);
                }
                eprintln!("\ninterrupted: cleaning up");
            }
        });
    })?;
    Ok(())
}

/// The pods of the demo.
struct World {
    web: Pod,
    cart_v1: Pod,
    stranger: Pod,
    servers: Vec<Process>,
}

impl World {
    fn build(sandbox: &mut Sandbox, show: &Show) -> Result<Self> {
        show.step("Two nodes, each with an agent and a socket holder; the namespace `shop` is labelled weft.dev/mesh=enabled");
        sandbox.apply("namespaces", &namespaces("permissive"))?;
        let (a, b) = (sandbox.add_node("node-a")?, sandbox.add_node("node-b")?);
        for node in [a, b] {
            sandbox::check_interrupt()?;
            sandbox.start_agent(node)?;
            let host = &sandbox.nodes()[node];
            show.line(&format!("{} at {}: agent and holder ready", host.name, host.ip));
        }
        show.step("Four pods; the container runtime's CNI ADD is what brings a pod into the mesh");
        let mut pod = |node: usize, namespace: &str, name: &str, app: &str| -> Result<Pod> {
            sandbox::check_interrupt()?;
            let pod = sandbox.add_pod(node, PodSpec::new(namespace, name, app))?;
            show.line(&format!("{:<16} {:<11} on {}", pod.key, pod.ip, sandbox.nodes()[node].name));
            Ok(pod)
        };
        let web = pod(a, "shop", "web", "web")?;
        let stranger = pod(a, "outside", "stranger", "stranger")?;
        let cart_v1 = pod(b, "shop", "cart-v1", "cart")?;
        let cart_v2 = pod(b, "shop", "cart-v2", "cart")?;
        let weft = sandbox.weft()?;
        let weft = weft.to_str().context("path")?;
        let mut servers = Vec::new();
        for server in [&cart_v1, &cart_v2] {
            let name = &server.spec.name;
            servers.push(sandbox.spawn(server, "echo", &[weft, "echo", "--name", name, "--http", "8080"])?);
        }
        sandbox.apply("cart", &services(&cart_v1, &cart_v2))?;
        Ok(Self { web, cart_v1, stranger, servers })
    }

    fn canary(&self, sandbox: &Sandbox, show: &Show) -> Result<()> {
        sandbox::check_interrupt()?;
        show.step("A canary: an HTTPRoute on the Service `cart`, 90 % to cart-v1, 10 % to cart-v2");
        show.code(&route(90, 10));
        sandbox.apply("route", &route(90, 10))?;
        wait_for_split(sandbox, &self.web)?;
        let tally = call(sandbox, &self.web, &["--count", "2000", "--connections", "8"])?;
        ensure!(tally.bad() == 0, "requests failed: {:?} {:?}", tally.codes, tally.failures);
        let total = tally.good();
        for (service, count) in &tally.services {
            show.bar(service, *count, total);
        }
        show.line(&format!(
            "{total} requests from web, p50 {} µs, p99 {} µs, 0 failed",
            tally.p50_us, tally.p99_us
        ));
        let v2 = tally.services.get("cart-v2").copied().unwrap_or(0);
        // 4.5 standard deviations of a binomial with n = 2000, p = 0.1: one false alarm in 150,000 runs.
        ensure!((140..=260).contains(&v2), "expected about 200 of 2000 requests at cart-v2, saw {v2}");
        Ok(())
    }

    fn identities(&self, sandbox: &Sandbox, show: &Show) -> Result<()> {
        sandbox::check_interrupt()?;
        show.step("Who talked to whom, as each side verified it");
        let log_line = |node: usize, needle: &str| {
            let find = || {
                let log = sandbox.access_log(node);
                let found = log
                    .lines()
                    .rev()
                    .find(|l| l.contains(needle) && l.contains("spiffe://"))
                    .map(str::to_owned);
                found.and_then(|l| serde_json::from_str::<serde_json::Value>(&l).ok())
            };
            Sandbox::wait_until(&format!("an access log line with `{needle}`"), LIMIT, || find().is_some())?;
            find().context("access log line")
        };
        let client = log_line(0, "\"route\"")?;
        show.line(&format!(
            "node-a: {} -> {}",
            text(&client, "source_identity"),
            text(&client, "destination_identity")
        ));
        show.line(&format!(
            "node-a: {} {} -> {}",
            text(&client, "method"),
            text(&client, "path"),
            text(&client, "endpoint")
        ));
        // A line is written when its connection ends: this one is not kept, for pods called by address are not routed.
        let direct = format!("http://{}:8080/", self.cart_v1.ip);
        call_url(sandbox, &self.web, &direct, &["--count", "1", "--connections", "1"])?;
        let server = log_line(1, "\"inbound\"")?;
        show.line(&format!(
            "node-b: {} -> {}",
            text(&server, "source_identity"),
            text(&server, "destination_identity")
        ));
        for (line, side) in [(&client, "node-a"), (&server, "node-b")] {
            ensure!(
                text(line, "source_identity").ends_with("/ns/shop/sa/web")
                    && text(line, "destination_identity").ends_with("/ns/shop/sa/cart"),
                "{side} logged unexpected identities: {line}"
            );
        }
        let echo = one_answer(sandbox, &self.web)?;
        ensure!(
            text(&echo, "peer") == self.web.ip.to_string(),
            "the server saw {} as its client",
            text(&echo, "peer")
        );
        show.line(&format!("and cart saw its client's own address: {}", text(&echo, "peer")));
        Ok(())
    }

    fn wire(&self, sandbox: &Sandbox, show: &Show) -> Result<()> {
        sandbox::check_interrupt()?;
        show.step("What crosses the wire: a secret header, captured on web's veth");
        let capture = wire::Capture::start(sandbox, &self.web)?;
        let header = format!("x-secret: {}", wire::SECRET);
        let tally = call(sandbox, &self.web, &["--count", "20", "--connections", "1", "--header", &header])?;
        ensure!(tally.bad() == 0, "requests failed: {:?} {:?}", tally.codes, tally.failures);
        let seen = capture.finish(8080)?;
        show.line(&format!("{} packets, all between {} and cart's own port 8080", seen.packets, self.web.ip));
        show.line(&format!(
            "TLS application data records: {}; the secret in clear: {}",
            seen.tls_records, seen.secrets
        ));
        show.code(&seen.sample);
        ensure!(seen.packets > 0 && seen.tls_records > 0, "no TLS was seen on the wire");
        ensure!(seen.secrets == 0 && seen.elsewhere == 0, "plaintext was seen on the wire: {seen:?}");
        Ok(())
    }

    fn strict(&self, sandbox: &Sandbox, show: &Show) -> Result<()> {
        sandbox::check_interrupt()?;
        show.step(
            "Plaintext from a pod outside the mesh: accepted while `permissive`, refused under `strict`",
        );
        let direct = |count: &str| -> Result<Tally> {
            let url = format!("http://{}:8080/", self.cart_v1.ip);
            call_url(sandbox, &self.stranger, &url, &["--count", count, "--connections", "1"])
        };
        let before = direct("1")?;
        ensure!(before.good() == 1, "permissive should let plaintext in: {:?}", before.failures);
        show.line("permissive: stranger -> cart-v1 answered 200");
        sandbox.apply("namespaces", &namespaces("strict"))?;
        let mut refusal = String::new();
        Sandbox::wait_until("strict to take effect", LIMIT, || {
            let failures = direct("1").map(|t| t.failures).unwrap_or_default();
            refusal = failures.keys().next().cloned().unwrap_or_default();
            !refusal.is_empty()
        })?;
        show.line(&format!("strict:     stranger -> cart-v1 refused ({refusal})"));
        let inside = call(sandbox, &self.web, &["--count", "10"])?;
        ensure!(inside.bad() == 0, "strict must not touch the mesh's own traffic: {:?}", inside.failures);
        show.line("            web -> cart still answers, over mutual TLS");
        Ok(())
    }

    fn live_edit(&self, sandbox: &Sandbox, show: &Show) -> Result<()> {
        sandbox::check_interrupt()?;
        show.step("A live edit: 90/10 becomes 50/50 while requests run");
        let tally = std::thread::scope(|scope| -> Result<Tally> {
            let load = scope.spawn(|| {
                call(sandbox, &self.web, &["--count", "6000", "--connections", "8", "--rate", "2000"])
            });
            std::thread::sleep(Duration::from_millis(1500));
            sandbox.apply("route", &route(50, 50))?;
            load.join().map_err(|_| anyhow::anyhow!("the load's thread died"))?
        })?;
        for (tenth, services) in tally.timeline.range(..30).filter(|(tenth, _)| *tenth % 3 == 0) {
            if *tenth == 15 {
                show.line("          ── the file is written here ──");
            }
            let total = services.values().sum();
            let v2 = services.get("cart-v2").copied().unwrap_or(0);
            show.bar(&format!("{:.1} s  cart-v2", *tenth as f64 / 10.0), v2, total);
        }
        show.line(&format!("{} requests, {} failed", tally.good() + tally.bad(), tally.bad()));
        ensure!(tally.bad() == 0, "requests failed during the edit: {:?} {:?}", tally.codes, tally.failures);
        let share = |from: u64, to: u64| {
            let slices = tally.timeline.range(from..to).map(|(_, s)| s);
            let (v2, all) = slices.fold((0, 0), |(v2, all), s| {
                (v2 + s.get("cart-v2").copied().unwrap_or(0), all + s.values().sum::<u64>())
            });
            v2 as f64 / (all as f64).max(1.0)
        };
        let (before, after) = (share(0, 14), share(20, 1000));
        ensure!(
            before < 0.2 && after > 0.4,
            "the edit did not take effect: {before:.2} before, {after:.2} after"
        );
        Ok(())
    }

    fn how_to_play(mut self, sandbox: Sandbox, show: &Show) -> Result<()> {
        std::fs::write(sandbox.dir().join("keep"), b"")?;
        for server in &mut self.servers {
            server.detach();
        }
        show.done("All as promised, and left running.");
        show.line(&format!("objects:  edit {}/*.yaml; agents reload them", sandbox.config_dir().display()));
        show.line(&format!(
            "a client: nsenter --net={} curl -s http://{CART}/",
            self.web.netns.path().display()
        ));
        show.line(&format!(
            "metrics:  nsenter --net={} curl -s http://127.0.0.1:15020/metrics",
            sandbox.nodes()[0].netns.path().display()
        ));
        show.line(&format!("logs:     {}/*.log", sandbox.dir().display()));
        let weft = std::env::current_exe()?;
        show.line(&format!("the end:  {} demo --remove", weft.display()));
        Ok(())
    }
}

fn namespaces(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {{weft.dev/mesh: enabled, weft.dev/mtls: {mode}}}\n\
         ---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: outside}}\n"
    )
}

fn services(v1: &Pod, v2: &Pod) -> String {
    let service = |name: &str, last: u8, pods: &[&Pod]| {
        service_yaml(&EndpointsOf {
            namespace: "shop",
            name,
            cluster_ip: Ipv4Addr::new(10, 96, 0, last),
            ports: &[("http", 80, 8080, "http")],
            pods,
        })
    };
    [service("cart", 10, &[v1, v2]), service("cart-v1", 11, &[v1]), service("cart-v2", 12, &[v2])]
        .join("---\n")
}

fn route(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: cart}}\nspec:\n  parentRefs:\n  \
         - {{group: \"\", kind: Service, name: cart, port: 80}}\n  rules:\n  - backendRefs:\n    \
         - {{name: cart-v1, port: 80, weight: {v1}}}\n    - {{name: cart-v2, port: 80, weight: {v2}}}\n"
    )
}

fn call(sandbox: &Sandbox, pod: &Pod, args: &[&str]) -> Result<Tally> {
    call_url(sandbox, pod, &format!("http://{CART}/items/7"), args)
}

fn call_url(sandbox: &Sandbox, pod: &Pod, url: &str, args: &[&str]) -> Result<Tally> {
    let weft = sandbox.weft()?;
    let mut argv = vec![weft.to_str().context("path")?, "call", url];
    argv.extend(args);
    let output = sandbox.exec(pod, &argv, LIMIT)?.ok()?;
    serde_json::from_str(&output).with_context(|| format!("`weft call` printed {output}"))
}

fn one_answer(sandbox: &Sandbox, pod: &Pod) -> Result<serde_json::Value> {
    let output = sandbox
        .exec(pod, &["curl", "-sS", "--noproxy", "*", &format!("http://{CART}/whoami")], LIMIT)?
        .ok()?;
    Ok(serde_json::from_str(&output)?)
}

/// The route serves once both versions have answered.
fn wait_for_split(sandbox: &Sandbox, web: &Pod) -> Result<()> {
    Sandbox::wait_until("the route to serve both versions", LIMIT, || {
        call(sandbox, web, &["--count", "60"])
            .is_ok_and(|tally| tally.bad() == 0 && tally.services.len() == 2)
    })
}

fn text<'a>(value: &'a serde_json::Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or("-")
}
