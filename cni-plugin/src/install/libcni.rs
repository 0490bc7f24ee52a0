//! Which libcni the node's container runtime was built with: that decides whether it reads drop-ins.
//!
//! Runtimes that read none ignore them without a word, so their age is not guessed: a Go program carries the versions of
//! its modules (`debug/buildinfo`), and the runtime's program can be read through /proc.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// Programs that load network configurations, by `comm`.
const RUNTIMES: [&str; 3] = ["containerd", "crio", "cri-dockerd"];
const MODULE: &str = "github.com/containernetworking/cni";
/// The first version that reads `<conf dir>/<network>/*.conf` (containernetworking/cni#1052).
const DROP_INS_SINCE: (u64, u64) = (1, 3);

/// `debug/buildinfo`: magic, aligned to 16 bytes; then pointer size and flags; from byte 32 on two strings.
const MAGIC: &[u8; 14] = b"\xff Go buildinf:";
const HEADER: usize = 32;
/// Flag: the strings are in place (Go ≥ 1.18).
const INLINE: u8 = 2;
/// A program that lists more modules than fit is none that we know.
const MAX_INFO: usize = 1 << 20;
/// No runtime is larger; bounds what is read.
const MAX_PROGRAM: u64 = 1 << 30;

/// Whether the runtime of this node reads drop-ins. `None`: no runtime, or none that says.
pub(super) fn reads_drop_ins(proc_root: &Path) -> Option<bool> {
    let versions: Vec<(u64, u64)> = programs(proc_root).iter().filter_map(|p| version_of(p)).collect();
    // With several, the oldest decides.
    versions.into_iter().min().map(|oldest| oldest >= DROP_INS_SINCE)
}

fn programs(proc_root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(proc_root).into_iter().flatten().flatten();
    let processes = entries.map(|e| e.path()).filter(|p| {
        let comm = fs::read_to_string(p.join("comm")).unwrap_or_default();
        RUNTIMES.contains(&comm.trim_end())
    });
    processes.map(|p| p.join("exe")).collect()
}

fn version_of(program: &Path) -> Option<(u64, u64)> {
    let modules = build_info(File::open(program).ok()?.take(MAX_PROGRAM))?;
    let line = modules.lines().find_map(|line| {
        let mut fields = line.split('\t').skip_while(|kind| *kind != "dep" && *kind != "=>");
        (fields.nth(1) == Some(MODULE)).then(|| fields.next())?
    })?;
    let mut numbers = line.strip_prefix('v')?.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The lines `dep <module> <version> <sum>` of a Go program.
fn build_info(mut program: impl Read) -> Option<String> {
    // Block by block, each with what follows it: the magic is aligned, the information behind it is not.
    let mut window = Vec::new();
    loop {
        let block = MAX_INFO * 4;
        let before = window.len();
        program.by_ref().take((block - before.min(block)) as u64).read_to_end(&mut window).ok()?;
        let is_last = window.len() < block;
        let search = if is_last { window.len() } else { window.len() - MAX_INFO };
        let found = (0..search).step_by(16).find(|at| window[*at..].starts_with(MAGIC));
        if let Some(info) = found.and_then(|at| modules(&window[at..])) {
            return Some(info);
        }
        if is_last {
            return None;
        }
        window.drain(..search);
    }
}

fn modules(info: &[u8]) -> Option<String> {
    if info.get(15)? & INLINE == 0 {
        return None;
    }
    let (_, rest) = string(info.get(HEADER..)?)?;
    let (modules, _) = string(rest)?;
    // Between two marks of 16 bytes.
    let modules = modules.get(16..modules.len().checked_sub(16)?)?;
    Some(String::from_utf8_lossy(modules).into_owned())
}

/// A string with its length before it, seven bits a byte.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut shift) = (0_usize, 0);
    for (index, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return bytes.get(index + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A process whose program was built with these module lines.
    fn process(root: &Path, pid: u32, comm: &str, modules: &str) {
        let dir = root.join(pid.to_string());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        let mut program = vec![b'.'; MAX_INFO * 4 - 64]; // the information lies across a block's end
        program.extend(MAGIC);
        program.extend([8, INLINE]);
        program.resize(program.len() + 16, 0);
        program.extend([3, b'g', b'o', b'1']);
        let length = modules.len() + 32;
        program.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        program.extend([b'<'; 16]);
        program.extend(modules.as_bytes());
        program.extend([b'>'; 16]);
        fs::write(root.join(format!("program-{pid}")), program).unwrap();
        symlink(root.join(format!("program-{pid}")), dir.join("exe")).unwrap();
    }

    #[test]
    fn the_oldest_runtime_decides() {
        let with = |version: &str| {
            format!(
                "path\tx\nmod\tx\t(devel)\t\ndep\tgithub.com/a/b\tv1.9.0\th1:\ndep\t{MODULE}\t{version}\th1:x=\n"
            )
        };
        type Case<'a> = (&'a [(&'a str, String)], Option<bool>);
        let cases: [Case<'_>; 6] = [
            (&[], None),
            (&[("containerd", with("v1.3.0"))], Some(true)),
            (&[("containerd", with("v1.2.3"))], Some(false)),
            (&[("containerd", with("v2.0.0-rc.1")), ("crio", with("v1.1.2"))], Some(false)),
            (&[("containerd", with("(devel)"))], None),
            (&[("bash", with("v1.3.0"))], None),
        ];
        for (processes, want) in cases {
            let root = TempDir::new().unwrap();
            for (pid, (comm, modules)) in (1..).zip(processes) {
                process(root.path(), pid, comm, modules);
            }
            assert_eq!(reads_drop_ins(root.path()), want, "{processes:?}");
        }
    }

    #[test]
    fn a_program_that_is_none_of_go_says_nothing() {
        assert_eq!(version_of(&std::env::current_exe().unwrap()), None);
        assert_eq!(version_of(Path::new("/no/such/program")), None);
    }
}
