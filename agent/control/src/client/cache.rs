//! Material in one file of a directory that only root can enter. The directory is to be a tmpfs: private keys are
//! kept as they are, protected by the file's mode and gone with the machine's power. One file, written whole and
//! renamed into place: what is no longer needed is gone with the file that held it.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::PathBuf,
};

use prost::Message;
use zeroize::Zeroizing;

use crate::{
    convert::{material_from_map, material_to_map},
    delta::{Bounds, Mirror, diff},
    report::Material,
    wire,
};

const FILE: &str = "material";
const BESIDE: &str = "material.new";
/// A file larger than this is none of ours.
const MAX: u64 = 256 << 20;

/// The cache of one node.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    node: String,
}

/// What is in the file.
#[derive(Clone, PartialEq, prost::Message)]
struct Cached {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, repeated, tag = "2")]
    material: Vec<wire::Material>,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, node: String) -> Self {
        Self { dir, node }
    }

    /// What was stored last; nothing when there is nothing that can be used.
    pub(super) fn load(&self) -> Material {
        match self.read() {
            Ok(material) => material,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Material::default(),
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "cached material cannot be used");
                Material::default()
            }
        }
    }

    /// Replaces what is stored. Blocks on the disk.
    ///
    /// # Errors
    /// When the directory cannot be made or written: the machine's fault. What was stored before stays.
    pub(super) fn store(&self, material: &Material) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::set_permissions(&self.dir, Permissions::from_mode(0o700))?;
        let cached = Cached { node: self.node.clone(), material: diff(None, &material_to_map(material)) };
        // The exact size at once: a growing buffer would leave pieces of keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(cached.encoded_len()));
        cached.encode(&mut *bytes).map_err(io::Error::other)?;
        let beside = self.dir.join(BESIDE);
        // A left-over may have another mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, self.dir.join(FILE))
    }

    fn read(&self) -> io::Result<Material> {
        let path = self.dir.join(FILE);
        let size = fs::metadata(&path)?.len();
        let bad = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        if size > MAX {
            return Err(bad(format!("{} is too large: {size} bytes", path.display())));
        }
        let bytes = Zeroizing::new(fs::read(&path)?);
        let cached = Cached::decode(&**bytes).map_err(|e| bad(e.to_string()))?;
        if cached.node != self.node {
            return Err(bad(format!("it is of node {}", cached.node)));
        }
        let mut mirror = Mirror::<wire::Material>::new(Bounds { entries: usize::MAX, bytes: usize::MAX });
        let mut complete = false;
        for chunk in cached.material {
            complete = mirror.take(chunk).map_err(|e| bad(e.to_string()))?;
        }
        match complete {
            true => Ok(material_from_map(mirror.entries())),
            false => Err(bad("it is not complete".to_owned())),
        }
    }
}
