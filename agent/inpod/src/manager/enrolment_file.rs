//! `enrolment.json`: what the CNI plugin knows while the agent is away.

use std::{fs, io, path::Path};
use weft_cni::protocol::{Enrolled, enrolment_path};

/// Writes the table by rename, if there is one and it differs from the file. A failure is logged: the plugin then
/// goes by the older table.
pub(crate) fn write(run_dir: &Path, table: Option<Enrolled>) {
    let Some(table) = table else { return };
    if let Err(error) = try_write(run_dir, &table) {
        tracing::error!(%error, dir = %run_dir.display(), "cannot write enrolment.json");
    }
}

fn try_write(run_dir: &Path, table: &Enrolled) -> io::Result<()> {
    let path = enrolment_path(run_dir);
    let json = serde_json::to_vec_pretty(table)?;
    if fs::read(&path).is_ok_and(|old| old == json) {
        return Ok(());
    }
    let temporary = run_dir.join(format!("enrolment.json.{}", std::process::id()));
    fs::write(&temporary, json)?; // no fsync: /run is a tmpfs, and the table is written anew after a boot
    fs::rename(&temporary, &path)
}
