//! `weft-bench fairness`: what one pod's flood does to another pod's latency.
//!
//! The victim and the attacker are pods of node A, their servers pods of node B, one CPU a node. The victim sends 500
//! requests a second on a fixed schedule: alone, beside the attack, and beside the same attack among pods outside the
//! mesh (`control`), which costs CPU too but no agent. Attacking programs run at a high niceness: in a cluster the weight
//! of a BestEffort pod beside an agent that has a CPU request is about as small.

use super::{
    Options,
    load::{Wrk, iperf, own},
    mesh::paced,
    peers::Who,
    place::Place,
    results::{Row, measure},
    rig::{IPERF, Path, Rig},
};
use anyhow::{Result, bail};
use std::{net::Ipv4Addr, thread, time::Duration};

#[derive(Clone, Copy, Debug)]
enum Attack {
    /// New HTTP connections, as many as go.
    Connections,
    /// TLS handshakes without a client certificate towards the agent's own port in a pod.
    Handshakes,
    /// Four streams at full speed.
    Bulk,
}

const SCENARIOS: &[(&str, &str, Attack)] = &[
    ("flood-connections", "a pod floods new connections", Attack::Connections),
    ("flood-handshakes", "a pod floods TLS handshakes on 15008", Attack::Handshakes),
    ("flood-bytes", "a pod streams at full speed", Attack::Bulk),
];

/// Names and titles.
pub(super) fn list() -> Vec<(String, &'static str)> {
    SCENARIOS.iter().map(|(name, title, _)| ((*name).to_owned(), *title)).collect()
}

/// Who attacks whom.
struct Lines {
    victim: Path,
    attack: Path,
    control: Path,
    /// The attacked pod itself.
    attacked: Ipv4Addr,
}

/// Measures the scenarios named, all when none is. Nothing without Weft, since there is no agent to share.
///
/// # Errors
/// When the nodes, pods or servers cannot be made.
pub(super) fn run(options: &Options, names: &[String]) -> Result<Vec<Row>> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|(name, ..)| Options::wants(names, name)).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let mut rig = Rig::create(options)?;
    let inside = if options.takes_part(Who::Weft) { "shop" } else { "outside" };
    let lines = lines(&mut rig, inside, options.attacker_nice)?;
    let mut rows = Vec::new();
    for (name, title, attack) in chosen {
        eprintln!("fairness {name}: {title}");
        let mut row = Row::new(name, title);
        for round in 0..options.rounds {
            if round == 0 && !options.quick {
                let _ = paced(&lines.victim, 500, 4, 1);
            }
            once(&rig, &mut row, &lines, ("alone", None), options);
            once(&rig, &mut row, &lines, ("beside", Some((*attack, false))), options);
            if !matches!(attack, Attack::Handshakes) {
                once(&rig, &mut row, &lines, ("control", Some((*attack, true))), options);
            }
            rig.tidy(&mut row);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn lines(rig: &mut Rig, inside: &str, nice: u8) -> Result<Lines> {
    let victim = rig.pod(0, inside, "victim")?;
    let attacker = rig.pod(0, inside, "attacker")?;
    let outsider = rig.pod(0, "outside", "outsider")?;
    let victim = rig.path(inside, &victim, "web")?;
    let mut attack = rig.path(inside, &attacker, "target")?;
    let mut control = rig.path("outside", &outsider, "apart")?;
    let attacked = rig.sandbox.pod(&format!("{inside}/target"))?.ip;
    attack.client = attack.client.nice(nice);
    control.client = control.client.nice(nice);
    Ok(Lines { victim, attack, control, attacked })
}

fn once(
    rig: &Rig,
    row: &mut Row,
    lines: &Lines,
    (who, attack): (&str, Option<(Attack, bool)>),
    options: &Options,
) {
    let seconds = options.seconds;
    let mut strength = 0.0;
    // Enough load on the victim's side for a p99, and the attack is there a second before and after.
    let figures = options.run_quiet(row, who, &["client", "server"], || {
        measure(&[], &[rig.agents.clone(), rig.servers()].concat(), || {
            thread::scope(|scope| {
                let flood = attack.map(|(attack, apart)| {
                    scope.spawn(move || flood(rig, lines, attack, apart, seconds + 2))
                });
                if flood.is_some() {
                    thread::sleep(Duration::from_secs(1));
                }
                let load = paced(&lines.victim, 500, 4, seconds);
                if let Some(flood) = flood {
                    strength = flood.join().map_err(|_| anyhow::anyhow!("the attack panicked"))??;
                }
                load
            })
        })
    });
    if let (Some(_), Some(last)) = (figures, row.samples.get_mut(who).and_then(|s| s.last_mut()))
        && attack.is_some()
    {
        eprintln!("           attack: {strength:.1} a second (Gbit/s for bytes)");
        last.insert("attack".into(), strength);
    }
}

/// Runs an attack and gives its strength: connections or handshakes a second, or Gbit/s.
fn flood(rig: &Rig, lines: &Lines, attack: Attack, apart: bool, seconds: u64) -> Result<f64> {
    let path = if apart { &lines.control } else { &lines.attack };
    let strength = match attack {
        Attack::Connections => {
            let url = format!("http://{}:{}/1k", path.ip, path.http);
            let dir = rig.sandbox.dir();
            let load = Wrk { url, connections: 64, threads: 1, seconds, close: true, mix: &[], dir }
                .run(&path.client)?;
            load.requests as f64 / load.seconds
        }
        Attack::Handshakes => handshakes(&lines.control.client, lines.attacked, rig, seconds)?,
        Attack::Bulk => {
            let load = iperf(&path.client, &path.ip.to_string(), IPERF, &["-P4"], seconds)?;
            load.bytes as f64 * 8.0 / 1e9 / load.seconds
        }
    };
    if strength <= 0.0 {
        bail!("the attack reached nothing");
    }
    Ok(strength)
}

/// From a pod outside the mesh: an enrolled pod's connections would be captured.
fn handshakes(client: &Place, attacked: Ipv4Addr, rig: &Rig, seconds: u64) -> Result<f64> {
    if rig.agents.is_empty() {
        bail!("nobody listens on 15008 without agents");
    }
    let (target, time) = (format!("{attacked}:15008"), seconds.to_string());
    let args = ["handshakes", "--target", &target, "--connections", "32", "--seconds", &time, "--no-request"];
    let load = own(client, &args, Duration::from_secs(seconds + 60))?;
    Ok(load.requests as f64 / load.seconds)
}
