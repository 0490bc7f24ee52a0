//! One rollout of each kind under load. (`./dev soak rollouts` is the long form.)

use crate::{Story, brief, step};
use anyhow::{Result, ensure};
use std::collections::HashSet;
use weft_tests::rollouts::{Backend, Counted, World, verdict};

/// Requests a second of each load.
const RATE: u32 = 50;

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let mut world = World::build(story.cluster, RATE)?;
    step("servers that finish what they have taken", || {
        let counted = world.round(&[Backend::Finishes, Backend::PreStop])?;
        told(&counted, &HashSet::new())
    })?;
    step("a server that exits at once, also outside the mesh", || {
        let counted = world.round(&[Backend::Exits])?;
        told(&counted, &world.taken()?)
    })?;
    step(
        "a server that listens ten seconds after its start, ready by tcpSocket, also outside the mesh",
        || {
            let counted = world.round(&[Backend::Late])?;
            told(&counted, &HashSet::new())
        },
    )?;
    World::clear(story.cluster)
}

fn told(counted: &[Counted], taken: &HashSet<String>) -> Result<()> {
    counted.iter().for_each(|load| println!("{}: {}", load.prefix, brief(&load.tally)));
    let wrong = verdict(counted, taken);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
