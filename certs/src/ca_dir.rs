//! The CA in a directory: `ca.crt` (the signing certificate, then those above it), `ca.key` (mode 0600) and,
//! if present, `roots.pem` (further roots to trust while one is being replaced).
//!
//! Processes that start at once on the same directory end with the same CA: making it happens under a lock on
//! `.ca.lock`, and `ca.crt`, written last and renamed into place, says that both are complete.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    bundle::TrustBundle,
    ca::{Ca, CaError},
    key::SecretKey,
    pem,
};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const ROOTS: &str = "roots.pem";
const LOCK: &str = ".ca.lock";

impl Ca {
    /// The CA of `dir`, made there if there is none yet. Blocks on the disk.
    ///
    /// # Errors
    /// When a file cannot be read or written, or does not make a CA. A certificate without its key is an
    /// error: replacing it would cut off everyone who trusts it.
    pub fn load_or_create(dir: &Path, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        // First without the lock: the directory may be a mounted Secret, which is read-only.
        if let Some(ca) = Self::load(dir)? {
            return Ok(ca);
        }
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.join(LOCK);
        let lock = private(OpenOptions::new().write(true).create(true).truncate(false)).open(&path);
        let lock = lock.map_err(io_error(&path))?;
        lock.lock().map_err(io_error(&path))?; // released when `lock` is closed, also on a crash
        if let Some(ca) = Self::load(dir)? {
            return Ok(ca);
        }
        // A key without a certificate: a crash between the two writes. Take it up again.
        let key = match read_if_there(&dir.join(KEY))? {
            Some(text) => parse_key(&dir.join(KEY), &text)?,
            None => SecretKey::generate()?,
        };
        let ca = Self::create_with(key, trust_domain, now)?;
        ca.save(dir)?;
        Ok(ca)
    }

    /// The CA of `dir`, or none when there is no `ca.crt`.
    ///
    /// # Errors
    /// When a file cannot be read or does not make a CA.
    pub fn load(dir: &Path) -> Result<Option<Self>, CaError> {
        let Some(certificates) = read_if_there(&dir.join(CERTIFICATE))? else { return Ok(None) };
        let key = read_if_there(&dir.join(KEY))?.ok_or_else(|| CaError::Material {
            what: dir.join(CERTIFICATE).display().to_string(),
            reason: format!(
                "{KEY} is missing beside it; restore it, or remove {CERTIFICATE} to start a new mesh"
            ),
        })?;
        let ca = Self::from_pem(&certificates, &key).map_err(in_dir(dir))?;
        match read_if_there(&dir.join(ROOTS))? {
            Some(more) => Ok(Some(ca.trusting(&TrustBundle::from_pem(&more)?))),
            None => Ok(Some(ca)),
        }
    }

    /// Writes `ca.key`, then `ca.crt`, each renamed into place. For a root that was made here.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), CaError> {
        write_atomically(&dir.join(KEY), pem::encode("PRIVATE KEY", self.key().der()).as_bytes())?;
        write_atomically(&dir.join(CERTIFICATE), self.certificate_pem().as_bytes())
    }
}

fn parse_key(path: &Path, text: &[u8]) -> Result<SecretKey, CaError> {
    let bad = |e: &dyn std::fmt::Display| CaError::Material {
        what: path.display().to_string(),
        reason: format!("not a private key in PEM: {e}"),
    };
    let mut der = PrivateKeyDer::from_pem_slice(text).map_err(|e| bad(&e))?;
    let key = SecretKey::from_der(&der);
    der.zeroize();
    key.map_err(|e| bad(&e))
}

fn in_dir(dir: &Path) -> impl Fn(CaError) -> CaError + '_ {
    move |error| match error {
        CaError::Material { what, reason } => {
            CaError::Material { what: format!("{} ({what})", dir.display()), reason }
        }
        other => other,
    }
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, CaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(path)(e)),
    }
}

/// Writes beside, syncs, renames, syncs the directory: after a crash there is the whole file or none.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|e| {
        // Best effort: the next start overwrites it anyway.
        let _ = fs::remove_file(&beside);
        io_error(path)(e)
    })
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> CaError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| CaError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests;
