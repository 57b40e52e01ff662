// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the file must hold, block by block.
//!
//! Nearly always that is one value. After a request has failed it may be one of a few: what the
//! block held, what the call wrote, or what the disk held below a dirty page. Both layers are looked
//! at right then, so that two are left: what the page cache shows, and what the disk holds. When the
//! block is written by a call that succeeds, or the pages are gone and the disk was read, there is
//! one again. So nothing legal is ever blamed, and nothing is forgiven longer than it must be.

use std::ops::Range;

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    /// What a reader may see. Zeros behind the end of the file.
    now: Vec<Vec<u8>>,
    /// What the disk may hold.
    disk: Vec<Vec<u8>>,
    /// Changed in the page cache, and not known to be on the disk.
    dirty: bool,
}

impl Block {
    fn zeros(len: usize) -> Block {
        Block {
            now: vec![vec![0; len]],
            disk: vec![vec![0; len]],
            dirty: false,
        }
    }

    /// Changes what a reader sees. Nobody says when a dirty page is sent, so the disk may have what
    /// was there before.
    fn change(&mut self, from: usize, bytes: &[u8]) {
        let before = self.now.clone();
        add(&mut self.disk, before);
        for value in &mut self.now {
            value[from..from + bytes.len()].copy_from_slice(bytes);
        }
        let now = std::mem::take(&mut self.now);
        add(&mut self.now, now);
        self.dirty = true;
    }

    /// What the disk may hold now, or when its dirty pages were sent meanwhile.
    fn on_disk(&self) -> Vec<Vec<u8>> {
        let mut values = self.disk.clone();
        add(&mut values, self.now.clone());
        values
    }
}

/// Adds the values that are not there yet.
fn add(values: &mut Vec<Vec<u8>>, more: Vec<Vec<u8>>) {
    for value in more {
        if !values.contains(&value) {
            values.push(value);
        }
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    bsize: usize,
    size: u64,
    blocks: Vec<Block>,
    /// The size on the disk is at least this.
    floor: u64,
    /// A request failed that might have moved the size on the disk.
    lost: bool,
    /// Where the last dirty byte since the last sync ends.
    dirty_end: u64,
    /// More may be dirty than the blocks say: somebody stored through a mapping, which dirties the
    /// whole folio, whatever that is; or a request failed, which may leave its pages dirty; or dirty blocks were taken
    /// away: a dirty folio that has others besides is not split (`iomap_release_folio`), and stays dirty with them.
    unclear: bool,
}

/// What a failed call wanted to write, and how much of it is said to be written.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// Offset.
    pub off: u64,
    /// What it wanted to write.
    pub bytes: &'a [u8],
    /// So much of it was written for sure.
    pub sure: usize,
    /// The file's size now.
    pub size: u64,
}

impl Model {
    /// An empty file with blocks of this size.
    pub fn new(bsize: u64) -> Model {
        Model {
            bsize: bsize as usize,
            size: 0,
            blocks: Vec::new(),
            floor: 0,
            lost: false,
            dirty_end: 0,
            unclear: false,
        }
    }

    /// i_size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether some block may be dirty.
    pub fn is_dirty(&self) -> bool {
        self.unclear || self.blocks.iter().any(|b| b.dirty)
    }

    /// Bytes stored through a mapping.
    pub fn store(&mut self, off: u64, bytes: &[u8]) {
        self.write(off, bytes);
        self.unclear = true;
    }

    /// Whether everything has one value.
    pub fn is_certain(&self) -> bool {
        self.blocks.iter().all(|b| b.now.len() == 1)
    }

    /// The blocks of a range: their numbers.
    fn numbers(&self, off: u64, len: u64) -> Range<usize> {
        (off as usize / self.bsize)..((off + len) as usize).div_ceil(self.bsize)
    }

    /// The part of a block that lies in a range: first and last byte in the block.
    fn part(&self, number: usize, off: u64, len: u64) -> (usize, usize) {
        let start = number * self.bsize;
        let from = (off as usize).max(start) - start;
        let to = ((off + len) as usize).min(start + self.bsize) - start;
        (from, to)
    }

    /// The file is at least so long; what is new reads as zeros. The old last block is zeroed behind
    /// the old end, in the page cache.
    pub fn extend(&mut self, size: u64) {
        if size <= self.size {
            return;
        }
        let tail = self.size as usize / self.bsize;
        if !(self.size as usize).is_multiple_of(self.bsize) {
            self.blocks[tail].change(0, &[]);
            // A block that a failed call has left without data is not zeroed.
            if !self.lost {
                self.dirty_end = self.dirty_end.max(self.size);
            }
        }
        self.size = size;
        let blocks = (size as usize).div_ceil(self.bsize);
        self.blocks.resize(blocks, Block::zeros(self.bsize));
    }

    /// A plain write: in the page cache only, as far as anybody knows.
    pub fn write(&mut self, off: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if off > self.size {
            self.extend(off);
        }
        // Written, and so not zeroed before.
        let end = off + len;
        self.size = self.size.max(end);
        let blocks = (self.size as usize).div_ceil(self.bsize);
        self.blocks.resize(blocks, Block::zeros(self.bsize));
        self.change(off, len, |at, n| &bytes[at..at + n]);
        self.dirty_end = self.dirty_end.max(end);
    }

    fn change<'a>(&mut self, off: u64, len: u64, bytes: impl Fn(usize, usize) -> &'a [u8]) {
        for number in self.numbers(off, len) {
            let (from, to) = self.part(number, off, len);
            let at = number * self.bsize + from - off as usize;
            self.blocks[number].change(from, bytes(at, to - from));
        }
    }

    /// The call succeeded: its size is on the disk. Its blocks are settled by [`Model::pin`].
    pub fn written_through(&mut self, off: u64, bytes: &[u8]) {
        self.write(off, bytes);
        self.floor = self.floor.max(off + bytes.len() as u64);
    }

    /// Cut, or made longer, by truncate(2): the size on the disk is that, too.
    pub fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.cut(size);
        } else {
            self.extend(size);
        }
        self.size_is_on_disk();
    }

    fn cut(&mut self, size: u64) {
        self.size = size;
        let left = (size as usize).div_ceil(self.bsize);
        self.unclear |= self.blocks.iter().skip(left).any(|b| b.dirty);
        self.blocks.truncate(left);
        let from = size as usize % self.bsize;
        if from > 0
            && let Some(tail) = self.blocks.last_mut()
        {
            let zeros = vec![0; self.bsize - from];
            tail.change(from, &zeros);
        }
        self.dirty_end = self.dirty_end.min(size);
    }

    /// A transaction has put the size on the disk.
    pub fn size_is_on_disk(&mut self) {
        self.floor = self.size;
        self.lost = false;
    }

    /// A hole was punched, or the range was zeroed: whole blocks at once, parts of blocks in the page
    /// cache. The file stays as long as it is.
    pub fn punch(&mut self, off: u64, len: u64) {
        let end = (off + len).min(self.size.next_multiple_of(self.bsize as u64));
        if off >= end {
            return;
        }
        let zeros = vec![0; self.bsize];
        for number in self.numbers(off, end - off) {
            let (from, to) = self.part(number, off, end - off);
            if (from, to) == (0, self.bsize) {
                self.unclear |= self.blocks[number].dirty;
                self.blocks[number] = Block::zeros(self.bsize);
            } else {
                self.blocks[number].change(from, &zeros[from..to]);
            }
        }
        if !self.lost {
            self.dirty_end = self.dirty_end.max(end.min(self.size));
        }
    }

    /// The blocks at `dst` are now those at `src`; all whole blocks inside of the file.
    pub fn clone_range(&mut self, src: u64, len: u64, dst: u64) {
        let blocks = self.numbers(src, len);
        let copies: Vec<Vec<Vec<u8>>> = self.blocks[blocks]
            .iter()
            // It was written before it was shared.
            .map(|b| match b.dirty {
                true => b.now.clone(),
                false => b.on_disk(),
            })
            .collect();
        self.clone_values(copies, dst);
    }

    /// The blocks at `dst` hold these bytes, shared with another file.
    pub fn clone_bytes(&mut self, bytes: &[u8], dst: u64) {
        let copies = bytes.chunks(self.bsize).map(|b| vec![b.to_vec()]);
        self.clone_values(copies.collect(), dst);
    }

    fn clone_values(&mut self, copies: Vec<Vec<Vec<u8>>>, dst: u64) {
        let first = dst as usize / self.bsize;
        let end = dst + (copies.len() * self.bsize) as u64;
        if end > self.size {
            self.extend(end);
            self.size_is_on_disk();
        }
        for (block, values) in self.blocks[first..].iter_mut().zip(copies) {
            *block = Block {
                now: values.clone(),
                disk: values,
                dirty: false,
            };
        }
    }

    /// Everything dirty is on the disk, for sure.
    pub fn synced(&mut self) {
        for block in &mut self.blocks {
            if block.dirty {
                block.disk.clone_from(&block.now);
                block.dirty = false;
            } else {
                // Made dirty with its folio, perhaps.
                block.disk = block.on_disk();
            }
        }
        if self.lost {
            self.floor = self.floor.max(self.dirty_end.min(self.size));
        } else {
            self.floor = self.size;
        }
        self.dirty_end = 0;
        self.unclear = false;
    }

    /// Whether a reader may see these bytes at `off`; else the offset of the block that differs.
    pub fn check(&self, off: u64, seen: &[u8]) -> Result<(), u64> {
        self.compare(off, seen, |block, part, seen| {
            block.now.iter().any(|v| v[part.clone()] == *seen)
        })
    }

    /// Whether the disk may hold these bytes there, inside of the file.
    pub fn check_disk(&self, off: u64, seen: &[u8]) -> Result<(), u64> {
        let inside = (self.size.saturating_sub(off) as usize).min(seen.len());
        self.compare(off, &seen[..inside], |block, part, seen| {
            let values = match block.dirty {
                true => block.on_disk(),
                false => block.disk.clone(),
            };
            values.iter().any(|v| v[part.clone()] == *seen)
        })
    }

    fn compare(
        &self,
        off: u64,
        seen: &[u8],
        fits: impl Fn(&Block, Range<usize>, &[u8]) -> bool,
    ) -> Result<(), u64> {
        let zeros = Block::zeros(self.bsize);
        let len = seen.len() as u64;
        for number in self.numbers(off, len) {
            let (from, to) = self.part(number, off, len);
            let at = number * self.bsize + from - off as usize;
            let block = self.blocks.get(number).unwrap_or(&zeros);
            if !fits(block, from..to, &seen[at..at + to - from]) {
                return Err((number * self.bsize + from) as u64);
            }
        }
        Ok(())
    }

    /// These whole blocks were seen so, and the disk holds the same: they have one value.
    pub fn pin(&mut self, off: u64, seen: &[u8]) {
        let first = off as usize / self.bsize;
        let seen = seen.chunks(self.bsize);
        for (block, seen) in self.blocks[first..].iter_mut().zip(seen) {
            *block = Block {
                now: vec![seen.to_vec()],
                disk: vec![seen.to_vec()],
                dirty: false,
            };
        }
    }

    /// All pages were gone, and this is what the file holds, read anew; what differs is told as by
    /// [`Model::check`].
    pub fn read_anew(&mut self, seen: &[u8]) -> Result<(), u64> {
        self.check(0, seen)?;
        for (number, seen) in seen.chunks(self.bsize).enumerate() {
            let block = &mut self.blocks[number];
            block.now.retain(|v| v[..seen.len()] == *seen);
            // Behind the end of the file it may hold whatever it held.
            block.disk = block.on_disk();
            block.disk.retain(|v| v[..seen.len()] == *seen);
            block.dirty = false;
        }
        Ok(())
    }

    /// The file was mounted anew and has this size; what that may not be, in words.
    pub fn mounted(&mut self, size: u64) -> Result<(), String> {
        let least = if self.lost { self.floor } else { self.size };
        if !(least..=self.size).contains(&size) {
            return Err(match self.lost {
                true => format!("i_size is {size}, expected {least} to {}", self.size),
                false => format!("i_size is {size}, expected {least}"),
            });
        }
        if size < self.size {
            self.cut(size);
        }
        self.size_is_on_disk();
        self.dirty_end = 0;
        self.unclear = false;
        Ok(())
    }

    /// A call failed. Each block of it holds what it held or what the call wrote, in the page cache
    /// (`cache`) and on the disk (`disk`), where it may also hold what was there before the pages
    /// were dirty; both are whole blocks, seen just now. What differs, in words.
    pub fn failed(&mut self, call: &Failed<'_>, cache: &[u8], disk: &[u8]) -> Result<(), String> {
        let end = call.off + call.bytes.len() as u64;
        let least = match call.sure {
            0 => self.size,
            sure => self.size.max(call.off + sure as u64),
        };
        let most = self.size.max(end);
        if !(least..=most).contains(&call.size) {
            let size = call.size;
            return Err(format!("i_size is {size}, expected {least} to {most}"));
        }
        // With the part that is sure, and with all of it.
        let mut some = self.clone();
        if call.sure > 0 {
            some.write(call.off, &call.bytes[..call.sure]);
        }
        let mut all = self.clone();
        all.write(call.off, call.bytes);
        some.extend(all.size);
        let first = call.off as usize / self.bsize;
        let pairs = cache.chunks(self.bsize).zip(disk.chunks(self.bsize));
        for (i, (cache, disk)) in pairs.enumerate() {
            let number = first + i;
            let start = number * self.bsize;
            // Behind the end of the file nobody sees anything.
            let inside = (call.size as usize).saturating_sub(start).min(self.bsize);
            let (old, new) = (&some.blocks[number], &all.blocks[number]);
            let mut seen = old.now.clone();
            add(&mut seen, new.now.clone());
            // What is written for sure is on the disk as it is in the page cache.
            let whole = start + self.bsize <= call.off as usize + call.sure;
            let mut held = if whole {
                old.now.clone()
            } else {
                old.on_disk()
            };
            add(&mut held, new.now.clone());
            let at = start as u64;
            if !seen.iter().any(|v| v[..inside] == cache[..inside]) {
                return Err(format!(
                    "the block at {at} holds neither its old bytes nor the failed call's"
                ));
            }
            if !held.iter().any(|v| v[..inside] == disk[..inside]) {
                return Err(format!(
                    "the disk holds neither the old bytes of the block at {at} nor the failed call's"
                ));
            }
        }
        // The size first: it says what of the last block counts.
        if call.size > self.size {
            self.extend(call.size);
        }
        if call.size > self.floor {
            self.lost = true;
        }
        if call.sure > 0 {
            self.floor = self.floor.max(call.off + call.sure as u64);
        }
        self.both(first, cache, disk);
        // What was dirty in these blocks may be lost: no write of it moves the size on the disk any more.
        let dirty = self.blocks.iter().rposition(|b| b.dirty);
        let end = dirty.map_or(0, |number| (number + 1) * self.bsize);
        self.dirty_end = self.dirty_end.min(end as u64);
        self.unclear = true;
        Ok(())
    }

    /// Writing back failed: what was dirty is on the disk or is not. What differs, in words.
    pub fn sync_failed(&mut self, cache: &[u8], disk: &[u8]) -> Result<(), String> {
        let held = |e: u64| format!("the disk holds nothing that the block at {e} ever held");
        self.check(0, cache)
            .map_err(|e| format!("the block at {e} has changed in the page cache"))?;
        self.check_disk(0, disk).map_err(held)?;
        let dirty: Vec<usize> = (0..self.blocks.len())
            .filter(|&n| self.blocks[n].dirty)
            .collect();
        for number in dirty {
            let start = number * self.bsize;
            let of = |bytes: &[u8]| {
                let mut block = vec![0; self.bsize];
                let end = bytes.len().min(start + self.bsize);
                block[..end - start].copy_from_slice(&bytes[start..end]);
                block
            };
            let (cache, disk) = (of(cache), of(disk));
            self.both(number, &cache, &disk);
        }
        if self.size > self.floor {
            self.lost = true;
        }
        self.dirty_end = 0;
        self.unclear = true;
        Ok(())
    }

    /// These blocks show one thing in the page cache, and another on the disk: that is what a reader
    /// will see when the pages are gone. They count as clean, and may be dirty.
    fn both(&mut self, first: usize, cache: &[u8], disk: &[u8]) {
        let (bsize, size) = (self.bsize, self.size as usize);
        let pairs = cache.chunks(bsize).zip(disk.chunks(bsize));
        for (i, (cache, disk)) in pairs.enumerate() {
            let start = (first + i) * bsize;
            let Some(block) = self.blocks.get_mut(first + i) else {
                continue;
            };
            let inside = size.saturating_sub(start).min(bsize);
            let shown = |bytes: &[u8]| {
                let mut value = bytes.to_vec();
                value[inside..].fill(0);
                value
            };
            let mut now = vec![shown(cache)];
            add(&mut now, vec![shown(disk)]);
            let mut held = vec![disk.to_vec()];
            add(&mut held, now.clone());
            *block = Block {
                now,
                disk: held,
                dirty: false,
            };
        }
    }
}

#[cfg(test)]
mod tests;
