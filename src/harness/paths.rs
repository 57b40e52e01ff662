// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things lie: the cache and the project's own tree.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// `${XDG_CACHE_HOME:-~/.cache}/wtblk`, made if it is not there.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = std::env::var_os("HOME").filter(|v| !v.is_empty());
            let home =
                home.context("neither XDG_CACHE_HOME nor HOME is set: no place for the cache")?;
            PathBuf::from(home).join(".cache")
        }
    };
    let dir = std::path::absolute(base.join("wtblk"))
        .context("no current folder for a relative XDG_CACHE_HOME")?;
    fs::create_dir_all(&dir)
        .with_context(|| format!("cannot make the cache folder {}", dir.display()))?;
    Ok(dir)
}

/// The project's tree (guest tests, kernel patches, scenarios): `$WTBLK_ROOT`,
/// or a folder above the running program or the current one, or where it was built.
pub fn root() -> Result<PathBuf> {
    let is_root = |dir: &Path| dir.join("guest-tests/shared/Cargo.toml").is_file();
    if let Some(dir) = std::env::var_os("WTBLK_ROOT").filter(|v| !v.is_empty()) {
        let dir = PathBuf::from(dir);
        if !is_root(&dir) {
            bail!("WTBLK_ROOT={} is not wtblk's source tree", dir.display());
        }
        return Ok(dir);
    }
    let exe = std::env::current_exe().ok();
    let above = exe.iter().flat_map(|e| {
        e.ancestors()
            .skip(1)
            .map(Path::to_path_buf)
            .collect::<Vec<_>>()
    });
    let here = std::env::current_dir().ok().into_iter();
    let built = std::iter::once(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    above
        .chain(here)
        .chain(built)
        .find(|dir| is_root(dir))
        .context("wtblk's source tree (guest-tests, kernel-config) was not found; set WTBLK_ROOT")
}

/// A key over named parts: the first 16 hex digits of a SHA-256. Lengths are
/// hashed too, so that no two lists of parts look the same.
pub fn key<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in parts {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Writes a file so that a reader sees the old or the new one, never a half.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    file.write_all(bytes)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// An exclusive lock on a file, held until dropped. Says once on stderr what it waits for.
pub fn lock(path: &Path, what: &str) -> Result<fs::File> {
    let file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("wtblk: waiting for another wtblk that {what}");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// All files below `dir` (for keys), sorted by path, with their contents.
pub fn tree(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        let entries =
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    open.push(path);
                }
            } else {
                let bytes =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let name = path
                    .strip_prefix(dir)
                    .unwrap_or(&path)
                    .to_string_lossy()
                    .into_owned();
                found.push((name, bytes));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_lists_apart() {
        let a = key([("x", b"ab".as_slice()), ("y", b"")]);
        assert_eq!(a.len(), 16);
        assert_eq!(a, key([("x", b"ab".as_slice()), ("y", b"")]));
        assert_ne!(a, key([("x", b"a".as_slice()), ("by", b"")]));
        assert_ne!(a, key([("x", b"ab".as_slice())]));
    }

    #[test]
    fn the_tree_is_found_from_a_test() {
        assert!(root().unwrap().join("kernel-config").is_dir());
    }
}
