// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a file may hold when it is not known how far a call came: each block is that of one of the
//! versions that the file has had.

use std::os::unix::fs::FileExt;

use crate::aftermath::is;
use crate::subject::Subject;
use crate::test::{Fail, OrFail, Test};

/// What the file held, in the order of time.
pub struct Versions(Vec<Vec<u8>>);

impl Versions {
    /// What is there for sure.
    pub fn from(s: &Subject) -> Versions {
        Versions(vec![s.expect.clone()])
    }

    /// What the subject expects now.
    pub fn add(&mut self, s: &Subject) {
        if self.0.last() != Some(&s.expect) {
            self.0.push(s.expect.clone());
        }
    }

    /// What a call would leave there; the subject does not expect it.
    pub fn add_call(&mut self, s: &mut Subject, version: u32, off: u64, len: u64) {
        let before = s.expect.clone();
        s.put_version(version, off, len);
        let wanted = std::mem::replace(&mut s.expect, before);
        self.0.push(wanted);
    }

    /// Whether the bytes are those of one of them at `from`.
    fn know(&self, bytes: &[u8], from: usize) -> bool {
        self.0.iter().any(|version| is(bytes, version, from))
    }

    /// Lengths that the file may have.
    fn lengths(&self) -> (usize, usize) {
        let first = self.0.first().map_or(0, Vec::len);
        let most = self.0.iter().map(Vec::len).max();
        (first, most.unwrap_or(first))
    }

    /// Reads all of the file: each block is that of one version, and nothing else shows.
    pub fn check(&self, t: &Test, s: &Subject, what: &str) -> Result<(), Fail> {
        let file = s.open();
        let size = file.size().or_fail(|| "fstat".into())?;
        let (least, most) = self.lengths();
        // What was never written has no length, whatever its base.
        let end = |len: usize| if len == 0 { 0 } else { s.base() + len as u64 };
        let (least, most) = (end(least), end(most));
        t.check(least <= size && size <= most, || {
            format!("{what}: i_size is {size}, expected {least} to {most}")
        });
        let mut seen = vec![0; size.min(most).saturating_sub(s.base()) as usize];
        file.file
            .read_exact_at(&mut seen, s.base())
            .or_fail(|| format!("{what}: reading back"))?;
        let b = t.world.bsize as usize;
        for (i, block) in seen.chunks(b).enumerate() {
            let at = s.base() + (i * b) as u64;
            t.check(self.know(block, i * b), || {
                format!(
                    "{what}: the block at {at} holds neither its old bytes nor new ones{}",
                    file.tell_stale(t.world, at, block)
                )
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_old_or_new_and_no_mixture() {
        let versions = Versions(vec![vec![1; 4], vec![2; 8]]);
        assert_eq!(versions.lengths(), (4, 8));
        assert!(versions.know(&[1, 1], 2));
        assert!(versions.know(&[2, 2], 2));
        assert!(!versions.know(&[1, 2], 2));
        // Beyond its end a version has zeros.
        assert!(versions.know(&[0, 0], 4));
        assert!(versions.know(&[2, 2], 4));
        assert!(!versions.know(&[1, 1], 4));
    }
}
