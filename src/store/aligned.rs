// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that begins at a page, for I/O past the page cache.

/// A page of any host that we know.
const PAGE: usize = 4096;

/// See the module. Zeros at first.
pub(super) struct Aligned {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn new(len: usize) -> Aligned {
        let memory = vec![0u8; len + PAGE];
        let from = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Aligned { memory, from, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::Aligned;

    #[test]
    fn it_begins_at_a_page() {
        for len in [1, 512, 100_000] {
            let mut memory = Aligned::new(len);
            assert!((memory.bytes().as_ptr() as usize).is_multiple_of(4096));
            assert_eq!(memory.bytes_mut().len(), len);
        }
    }
}
