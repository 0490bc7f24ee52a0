//! What the cells are run in: two nodes with pods in and outside the mesh, and a machine that is neither.

use crate::{Case, DEAD, DEAD_SERVICE, EXCLUDED, From, GROUP, Mesh, Mode, OPAQUE, PORT, Place, Seen, To};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use weft::sandbox::{Pod, PodSpec, Process, Sandbox};
use weft_tests::{LIMIT, client_script, python};

/// What the client saw.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Answer {
    /// `ok` and what the server said, or how it went wrong.
    pub(crate) seen: String,
    /// Its own address, as the agents' logs name it.
    source: Option<String>,
}

impl Answer {
    /// The address that the server saw, where it was asked.
    pub(crate) fn caller(&self) -> Option<&str> {
        let mut words = self.seen.split(' ').skip(3);
        words.next().filter(|_| words.next().is_some())
    }
}

/// Lines of an access log by the address that called.
type Lines = BTreeMap<String, Vec<serde_json::Value>>;

/// A pod, a node's network or another machine: where something runs.
type Spot = Pod;

pub(crate) struct World {
    mesh: Mesh,
    callers: BTreeMap<From, Spot>,
    /// By node.
    pods: [Pod; 2],
    guarded: [Pod; 2],
    plain: [Pod; 2],
    nodes: [Spot; 2],
    _servers: Vec<Process>,
    /// The agents' access logs, once all was asked.
    lines: [Lines; 2],
}

impl World {
    /// All pods serve, the mode is in effect.
    pub(crate) fn new(mode: Mode) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let external = mesh.external()?;
        let web = mesh.pod(0, "web-1")?;
        let stranger = mesh.pod_in(0, "outside", "stranger")?;
        let (only_v4, excluding) =
            (only_v4(&mut mesh)?, excluding(&mut mesh, "outbound", 0, "excluding", &external)?);
        let pods = [mesh.pod(0, "cart-0")?, mesh.pod(1, "cart-1")?];
        let guarded = [0, 1].map(|node| excluding_inbound(&mut mesh, node, &external));
        let [a, b] = guarded;
        let guarded = [a?, b?];
        let plain = [mesh.pod_in(0, "outside", "plain-0")?, mesh.pod_in(1, "outside", "plain-1")?];
        let nodes = [mesh.host(0), mesh.host(1)];
        for node in [0, 1] {
            service(&mesh, &format!("cart-{node}"), 20 + node, &pods[node as usize])?;
            service(&mesh, &format!("plain-{node}"), 30 + node, &plain[node as usize])?;
        }
        service(&mesh, "own", 40, &web)?;
        let mut servers = Vec::new();
        for spot in [&web, &external].into_iter().chain(&pods).chain(&guarded).chain(&plain).chain(&nodes) {
            servers.push(serve(&mesh, spot)?);
        }
        let callers = [
            (From::Web, web),
            (From::Excluding, excluding),
            (From::OnlyV4, only_v4),
            (From::Stranger, stranger),
            (From::Host, nodes[0].clone()),
            (From::External, external),
        ];
        let callers = BTreeMap::from(callers);
        let world = Self {
            mesh,
            callers,
            pods,
            guarded,
            plain,
            nodes,
            _servers: servers,
            lines: [Lines::new(), Lines::new()],
        };
        world.settle(mode)?;
        Ok(world)
    }

    /// Waits until the Services are known and the mode is in effect.
    fn settle(&self, mode: Mode) -> Result<()> {
        self.mesh.set_mode(mode.name())?;
        let all_as = |orders: &[String], from: From, seen: &dyn Fn(&str) -> bool| {
            self.call(from, orders).is_ok_and(|answers| answers.iter().all(|a| seen(&a.seen)))
        };
        let services: Vec<_> = [20, 21, 30, 31, 40]
            .iter()
            .flat_map(|&n| [false, true].map(|ipv6| order("hello", cluster_ip(n, ipv6), OPAQUE)))
            .collect();
        Sandbox::wait_until("every Service to serve", LIMIT, || {
            all_as(&services, From::Web, &|seen| seen.starts_with("ok"))
        })?;
        let direct: Vec<_> =
            self.pods.iter().chain(&self.guarded).map(|pod| order("hello", pod.ip.into(), PORT)).collect();
        Sandbox::wait_until("the mode to be in effect", LIMIT, || {
            all_as(&direct, From::Stranger, &|seen| seen.starts_with("ok") == (mode == Mode::Permissive))
        })
    }

    /// Runs the cases, those of one caller by one program.
    pub(crate) fn ask(&mut self, cases: &[Case], mode: Mode) -> Result<Vec<Answer>> {
        let mut answers: Vec<Option<Answer>> = vec![None; cases.len()];
        for &from in self.callers.keys() {
            let numbers: Vec<_> = (0..cases.len()).filter(|&n| cases[n].cell.from == from).collect();
            let orders: Vec<_> = numbers.iter().map(|&n| self.order(&cases[n])).collect();
            let seen = self.call(from, &orders)?;
            ensure!(
                seen.len() == numbers.len(),
                "{from:?}: {} answers to {} checks",
                seen.len(),
                numbers.len()
            );
            numbers.into_iter().zip(seen).for_each(|(n, answer)| answers[n] = Some(answer));
        }
        let answers: Option<Vec<_>> = answers.into_iter().collect();
        let answers = answers.context("a case without an answer")?;
        self.read_logs(|world| {
            let told = |(case, answer): (&Case, &Answer)| {
                let expected = case.cell.expected(mode);
                expected == Seen::Refused || world.carried(case, answer) == expected
            };
            cases.iter().zip(&answers).all(told)
        });
        Ok(answers)
    }

    /// How a connection went, by what the agents say of it.
    pub(crate) fn carried(&self, case: &Case, answer: &Answer) -> Seen {
        let Some(source) = &answer.source else { return Seen::Refused };
        let (called, spot) = (usize::from(case.place == Place::Other), self.answers(case));
        let ends = [format!("{}:", spot.ip), format!("[{}]:", spot.ip6)];
        // A port may have been used before, for a connection to somebody else.
        let reached = |line: &&serde_json::Value| {
            line["endpoint"].as_str().is_some_and(|at| ends.iter().any(|end| at.starts_with(end.as_str())))
        };
        let lines = |node: usize| self.lines[node].get(source).into_iter().flatten().filter(reached);
        match lines(0).find(|line| line["direction"] == "mesh") {
            Some(line) if line["destination_identity"].is_string() => Seen::Tunnel,
            Some(_) => Seen::Clear,
            None if lines(called).any(|line| line["direction"] == "inbound") => Seen::Inbound,
            // The server saw the very port that the caller had.
            None if answer.seen.rsplit(' ').next() == source.rsplit(':').next() => Seen::Direct,
            None => Seen::Untold,
        }
    }

    /// Reads both access logs once they tell of every connection that an agent must have carried, or are not going to.
    fn read_logs(&mut self, told: impl Fn(&Self) -> bool) {
        let _ = Sandbox::wait_until("the access logs", LIMIT / 4, || {
            self.lines = [0, 1].map(|node| by_source(&self.mesh.sandbox.access_log(node)));
            told(self)
        });
    }

    /// Who answers in the end.
    fn answers(&self, case: &Case) -> &Spot {
        let node = usize::from(case.place == Place::Other);
        match case.cell.to {
            To::Service(_) | To::Pod(_) => &self.pods[node],
            To::Guarded(_) => &self.guarded[node],
            To::PlainService(_) | To::Plain(_) => &self.plain[node],
            To::Node(_) => &self.nodes[node],
            To::External(_) => &self.callers[&From::External],
            To::Own(_) | To::Loopback(_) | To::Itself(_) => &self.callers[&case.cell.from],
        }
    }

    /// The address that the caller has towards whom it calls.
    pub(crate) fn own_address(&self, case: &Case) -> IpAddr {
        let caller = &self.callers[&case.cell.from];
        match (case.cell.to, case.cell.from) {
            (To::Loopback(_), _) if case.ipv6 => Ipv6Addr::LOCALHOST.into(),
            (To::Loopback(_), _) => Ipv4Addr::LOCALHOST.into(),
            // A node has an address of its own on the network of its pods, the first.
            (_, From::Host) if case.place == Place::Same && case.ipv6 => {
                Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1).into()
            }
            (_, From::Host) if case.place == Place::Same => Ipv4Addr::new(10, 88, 0, 1).into(),
            _ if case.ipv6 => caller.ip6.into(),
            _ => caller.ip.into(),
        }
    }

    fn order(&self, case: &Case) -> String {
        let spot = self.answers(case);
        let own: IpAddr = if case.ipv6 { spot.ip6.into() } else { spot.ip.into() };
        let number = u8::from(case.place == Place::Other);
        let (ip, port) = match case.cell.to {
            To::Service(port) => (cluster_ip(20 + number, case.ipv6), port),
            To::PlainService(port) => (cluster_ip(30 + number, case.ipv6), port),
            To::Own(port) => (cluster_ip(40, case.ipv6), port),
            To::Loopback(port) if case.ipv6 => (Ipv6Addr::LOCALHOST.into(), port),
            To::Loopback(port) => (Ipv4Addr::LOCALHOST.into(), port),
            To::Pod(port)
            | To::Guarded(port)
            | To::Plain(port)
            | To::Node(port)
            | To::External(port)
            | To::Itself(port) => (own, port),
        };
        order(case.cell.check, ip, port)
    }

    fn call(&self, from: From, orders: &[String]) -> Result<Vec<Answer>> {
        let (python, script) = (python()?, client_script("peer.py"));
        let mut argv = vec![&*python, &script, "call"];
        argv.extend(orders.iter().map(String::as_str));
        let said = self.mesh.sandbox.exec(&self.callers[&from], &argv, LIMIT * 3)?.ok()?;
        serde_json::from_str(&said).with_context(|| format!("peer.py printed {said}"))
    }
}

fn by_source(log: &str) -> Lines {
    let mut lines = Lines::new();
    for line in log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        if let Some(source) = line["source"].as_str() {
            lines.entry(source.to_owned()).or_default().push(line);
        }
    }
    lines
}

fn order(check: &str, ip: IpAddr, port: u16) -> String {
    format!("{check},{ip},{port}")
}

fn serve(mesh: &Mesh, spot: &Spot) -> Result<Process> {
    let (python, script) = (python()?, client_script("peer.py"));
    let (plain, group, excluded) = (PORT.to_string(), format!("{GROUP}x4"), EXCLUDED.to_string());
    let argv = [&*python, &script, "serve", &spot.spec.name, &plain, &group, &excluded];
    let process = mesh.sandbox.spawn(spot, "peer", &argv)?;
    let listens = |port: u16| {
        let ports = mesh.sandbox.exec(spot, &["ss", "-Htln", &format!("sport = :{port}")], LIMIT);
        ports.is_ok_and(|o| !o.stdout.trim().is_empty())
    };
    Sandbox::wait_until("peer.py to listen", LIMIT, || listens(EXCLUDED))?;
    Ok(process)
}

/// An enrolled pod that was made without IPv6, as many clusters have them.
fn only_v4(mesh: &mut Mesh) -> Result<Pod> {
    let pod = mesh.sandbox.create_pod(0, PodSpec::new("shop", "onlyv4-1", "onlyv4"))?;
    let off = ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"];
    mesh.sandbox.exec(&pod, &off, LIMIT)?.ok()?;
    mesh.sandbox.cni_add(&pod)?;
    Ok(pod)
}

fn excluding_inbound(mesh: &mut Mesh, node: usize, external: &Spot) -> Result<Pod> {
    excluding(mesh, "inbound", node, &format!("guarded-{node}"), external)
}

/// An enrolled pod that excludes [`EXCLUDED`] and the external machine, by its network and by its address.
fn excluding(mesh: &mut Mesh, side: &str, node: usize, name: &str, external: &Spot) -> Result<Pod> {
    let app = name.split('-').next().unwrap_or(name);
    let mut spec = PodSpec::new("shop", name, app);
    let cidrs = format!("{}/32, {}", external.ip, external.ip6);
    spec.annotations = vec![
        (format!("weft.dev/exclude-{side}-ports"), EXCLUDED.to_string()),
        (format!("weft.dev/exclude-{side}-cidrs"), cidrs),
    ];
    mesh.sandbox.add_pod(node, spec)
}

fn cluster_ip(number: u8, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, u16::from(number)).into()
    } else {
        Ipv4Addr::new(10, 96, 1, number).into()
    }
}

/// A dual-stack Service over one pod. Port [`DEAD_SERVICE`] leads to one where nobody listens.
fn service(mesh: &Mesh, name: &str, number: u8, pod: &Pod) -> Result<()> {
    let namespace = &pod.spec.namespace;
    let (v4, v6) = (cluster_ip(number, false), cluster_ip(number, true));
    let ports = [
        ("plain", PORT, PORT, ""),
        ("opaque", OPAQUE, PORT, "tcp"),
        ("dead", DEAD_SERVICE, DEAD, "tcp"),
        ("group", GROUP, GROUP, "tcp"),
    ];
    let of_service: String = ports
        .iter()
        .map(|(name, port, target, protocol)| {
            let app = if protocol.is_empty() { String::new() } else { format!(", appProtocol: {protocol}") };
            format!("  - {{name: {name}, port: {port}, targetPort: {target}{app}}}\n")
        })
        .collect();
    let of_slice: String = ports
        .iter()
        .map(|(name, _, target, _)| format!("- {{name: {name}, port: {target}, protocol: TCP}}\n"))
        .collect();
    let slice = |family: &str, ip: IpAddr| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {namespace}\n  name: {name}-{}\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n{of_slice}endpoints:\n\
             - {{addresses: [\"{ip}\"], conditions: {{ready: true}}, targetRef: {{kind: Pod, namespace: {namespace}, name: {}}}}}\n",
            family.to_lowercase(),
            pod.spec.name
        )
    };
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  type: ClusterIP\n  \
         clusterIP: {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
         ports:\n{of_service}{}{}",
        slice("IPv4", pod.ip.into()),
        slice("IPv6", pod.ip6.into())
    );
    mesh.sandbox.apply(&format!("service-{name}"), &yaml)
}
