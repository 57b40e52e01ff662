// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A make-believe kernel that keeps every promise: random calls on random
//! layouts, run side by side, their requests split, merged and completed in
//! any order, with side requests, strangers and errors that are reported.

use twox_hash::XxHash3_64;
use wtblk_shared::mark::{
    CallBegin, CallEnd, Change, Extent, FileContents, FileMark, FilePages, Mark,
};
use wtblk_shared::pattern;

use super::builder::*;
use crate::trace::event::{Body, DataEvent, DataKind, DeviceKind, Op, RequestId, Status};

/// Blocks of every file.
pub const BLOCKS: u64 = 48;

/// A source of numbers, all from one seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// More than one queue, errors, reboots and so on.
    pub wild: bool,
}

/// A call on its way.
struct Running {
    begin: CallBegin,
    after: Vec<Extent>,
    /// What is still to be sent, the last first.
    todo: Vec<Todo>,
    open: Vec<(RequestId, bool)>,
    /// A data or read request failed.
    failed: bool,
    /// One more bio was collected when it did.
    spare: bool,
    written: u64,
}

impl Running {
    /// The loop stops after an error; but a bio that was begun is sent to its end.
    fn give_up(&mut self) {
        if self.failed && self.todo.last().is_some_and(|t| t.part != Part::Rest) {
            if std::mem::take(&mut self.spare) {
                return;
            }
            self.todo.clear();
        }
    }
}

/// A request that is still to be sent.
#[derive(Clone, Copy, Debug)]
struct Todo {
    op: Op,
    at: u64,
    bytes: u64,
    part: Part,
    /// Where its data lies in the file.
    file: Option<u64>,
}

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Side,
    /// The first of a bio.
    First,
    /// What the block layer split off.
    Rest,
}

/// The layout of one file: the disk block of each block, if it has one.
type Layout = Vec<Option<u64>>;

pub struct Kernel {
    pub s: Stream,
    pub dice: Dice,
    wanted: Wanted,
    files: Vec<Layout>,
    /// By file: what the page cache holds; empty where no call names a pattern.
    bytes: Vec<Vec<u8>>,
    /// By file: i_size.
    sizes: Vec<u64>,
    /// By file: whether its one open file is to be told of an error.
    errors: Vec<bool>,
    /// Numbers of changes and questions.
    numbers: u64,
    free: u64,
    /// By number of the call, from 1 on.
    files_of: Vec<usize>,
    running: Vec<Running>,
    strangers: Vec<RequestId>,
    /// Somebody waits until the file system can be frozen.
    freezing: bool,
    call: u64,
    probe: u64,
    queues: u64,
}

impl Kernel {
    pub fn new(seed: u64, wanted: Wanted) -> Kernel {
        let mut dice = Dice(seed);
        let queues = if wanted.wild { 1 + dice.below(3) } else { 1 };
        let mut k = Kernel {
            s: Stream::files_marked(),
            files: Vec::new(),
            bytes: Vec::new(),
            sizes: Vec::new(),
            errors: Vec::new(),
            numbers: 0,
            free: 0,
            files_of: Vec::new(),
            running: Vec::new(),
            strangers: Vec::new(),
            freezing: false,
            call: 0,
            probe: 0,
            queues,
            wanted,
            dice,
        };
        k.s.env(&[("queues", &queues.to_string())]);
        for q in 1..queues {
            k.s.queue = q as u16;
            k.s.device(DeviceKind::QueueStart, 128, 1, "");
        }
        for _ in 0..1 + k.dice.below(4) {
            let file = k.lay_out();
            k.files.push(file);
            k.errors.push(false);
            let short = wanted.wild && k.dice.one_in(2);
            let size = BLOCKS * B - if short { k.dice.below(40 * B) } else { 0 };
            k.sizes.push(size);
            let told = k.dice.one_in(2);
            k.bytes
                .push(vec![0; if told { (BLOCKS * B) as usize } else { 0 }]);
            let (open, dev) = (100 + k.files.len() as u64 - 1, 8);
            k.s.file(FileMark::Opening { open });
            k.s.file(FileMark::Open {
                open,
                dev,
                ino: open - 100,
            });
        }
        k
    }

    /// Runs until so many calls have begun, and ends them all.
    pub fn run(mut self, calls: u64) -> Stream {
        while self.call < calls {
            self.step(true);
        }
        while !self.running.is_empty() {
            self.step(false);
        }
        self.s
    }

    fn new_block(&mut self) -> u64 {
        self.free += 1;
        DISK / B + self.free
    }

    fn lay_out(&mut self) -> Layout {
        let kind = self.dice.below(4);
        let base = self.free;
        let mut file: Layout = (0..BLOCKS)
            .map(|i| {
                let b = self.new_block();
                match kind {
                    0 => Some(b),
                    // Descends on the disk.
                    1 => Some(DISK / B + base + BLOCKS - i),
                    // Runs with gaps between them.
                    2 => (i % 7 != 3).then_some(b),
                    _ => None,
                }
            })
            .collect();
        if kind == 3 {
            file[0] = Some(self.new_block());
        }
        // A free block, so that two files are never neighbours.
        self.free += 1;
        file
    }

    fn extents(file: &Layout) -> Vec<Extent> {
        let mut list: Vec<Extent> = Vec::new();
        for (i, block) in file.iter().enumerate() {
            let Some(disk) = block.map(|b| b * B) else {
                continue;
            };
            let logical = i as u64 * B;
            match list.last_mut() {
                Some(e) if e.logical + e.length == logical && e.physical + e.length == disk => {
                    e.length += B;
                }
                _ => list.push(ext(logical, disk, B)),
            }
        }
        list
    }

    fn step(&mut self, may_begin: bool) {
        self.s.queue = self.dice.below(self.queues) as u16;
        let busy = self.running.len() as u64;
        match self.dice.below(20) {
            0..=3 if may_begin && busy < 4 => self.begin(),
            4..=8 if busy > 0 => self.send(),
            9..=13 if busy > 0 => self.finish_request(),
            14..=15 if busy > 0 => self.end(),
            16 => self.stranger(),
            17 => self.report(),
            18 if self.dice.one_in(2) => self.probe(),
            18 => self.ask(),
            19 if self.dice.one_in(2) => self.freeze(),
            _ => self.calm_strangers(),
        }
    }

    fn begin(&mut self) {
        // Synchronous calls of one file never overlap: the inode lock.
        let number = self.dice.below(self.files.len() as u64);
        if self.running.iter().any(|r| r.begin.ino == number) {
            return;
        }
        let before = Kernel::extents(&self.files[number as usize]);
        let first = self.dice.below(BLOCKS);
        let off = first * B + self.dice.below(3) * self.dice.below(1300);
        let off = off.min(BLOCKS * B - 1);
        let longest = (BLOCKS * B - off).min(1 + self.dice.below(12) * B);
        let len = 1 + self.dice.below(longest);
        self.call += 1;
        self.files_of.push(number as usize);
        let mut begin = CallBegin {
            ino: number,
            open: 100 + number,
            extents: Some(before),
            isize: self.sizes[number as usize],
            ..call(self.call, off, len)
        };
        if self.dice.one_in(4) {
            begin.flags.push("dsync".into());
        }
        let bytes = &mut self.bytes[number as usize];
        if !bytes.is_empty() {
            let (name, version) = (number as u32 + 1, self.call as u32);
            begin.pattern = Some((name, version));
            pattern::fill(
                name,
                version,
                off,
                &mut bytes[off as usize..(off + len) as usize],
            );
        }
        // Holes get blocks; sometimes a block is copied to a new place.
        let copies = self.wanted.wild && self.dice.one_in(4);
        for i in off / B..(off + len).div_ceil(B) {
            if self.files[number as usize][i as usize].is_none() || (copies && self.dice.one_in(2))
            {
                let new = self.new_block();
                self.files[number as usize][i as usize] = Some(new);
            }
        }
        let todo = self.plan(&begin, number as usize);
        self.s.begin(&begin);
        self.running.push(Running {
            after: Kernel::extents(&self.files[number as usize]),
            written: begin.len,
            begin,
            todo,
            open: Vec::new(),
            failed: false,
            spare: false,
        });
    }

    /// The requests of a call, the last first.
    fn plan(&mut self, begin: &CallBegin, file: usize) -> Vec<Todo> {
        let mut list = Vec::new();
        let first = begin.off / B;
        let last = (begin.off + begin.len).div_ceil(B);
        let place = |k: &Kernel, i: u64| k.files[file][i as usize].unwrap_or(0) * B;
        let side = |op, at, bytes| Todo {
            op,
            at,
            bytes,
            part: Part::Side,
            file: None,
        };
        if self.dice.one_in(3) {
            list.push(side(Op::Read, place(self, first), B));
        }
        if first > 1
            && self.dice.one_in(4)
            && let Some(b) = self.files[file][first as usize - 2]
        {
            // Zeroing before the range, perhaps not even of a whole block.
            list.push(side(Op::Write, b * B, 512 * (1 + self.dice.below(8))));
        }
        // Bios in file order, neighbours on the disk merged, then split anywhere.
        let mut bios: Vec<(u64, u64, u64)> = Vec::new();
        for i in first..last {
            let at = place(self, i);
            match bios.last_mut() {
                Some((start, len, _)) if *start + *len == at && !self.dice.one_in(5) => *len += B,
                _ => bios.push((at, B, i * B)),
            }
        }
        if self.wanted.wild
            && self.dice.one_in(16)
            && first > 0
            && let Some((at, len, file_at)) = bios.first_mut()
            && self.files[file][first as usize - 1] == Some(*at / B - 1)
        {
            // The block before the range is zeroed, and merged with the first of the call.
            (*at, *len, *file_at) = (*at - B, *len + B, *file_at - B);
        }
        for (at, len, file_at) in bios {
            let mut done = 0;
            while done < len {
                let rest = (len - done) / 512;
                let take = if self.dice.one_in(2) {
                    rest
                } else {
                    1 + self.dice.below(rest)
                };
                list.push(Todo {
                    op: Op::Write,
                    at: at + done,
                    bytes: take * 512,
                    part: if done == 0 { Part::First } else { Part::Rest },
                    file: Some(file_at + done),
                });
                done += take * 512;
            }
        }
        if self.dice.one_in(3) {
            list.push(side(Op::Write, LOG + 512 * self.dice.below(1000), 512 * 3));
        }
        list.reverse();
        list
    }

    fn pick(&mut self) -> usize {
        self.dice.below(self.running.len() as u64) as usize
    }

    fn send(&mut self) {
        let i = self.pick();
        let r = &mut self.running[i];
        r.give_up();
        // A block whose write is in flight waits for that (PG_writeback).
        if let Some(t) = r.todo.last()
            && t.op == Op::Write
            && self.s.is_flying(t.at, t.bytes)
        {
            return;
        }
        if let Some(Todo {
            op,
            at,
            bytes,
            part,
            file,
        }) = r.todo.pop()
        {
            let id = self
                .s
                .submit(op, ioprio(r.begin.tag.unwrap_or(0)), at, bytes);
            r.open.push((id, part != Part::Side));
            let cache = &self.bytes[r.begin.ino as usize];
            if let Some(file) = file
                && !cache.is_empty()
            {
                let sent = &cache[file as usize..(file + bytes) as usize];
                let digests = sectors(sent).into_iter().flat_map(u64::to_le_bytes);
                self.s.push(Body::Data(DataEvent {
                    request: id,
                    kind: DataKind::Digests,
                    sector: at / 512,
                    bytes: digests.collect(),
                }));
            }
            if self.dice.one_in(20) {
                self.s.hold(id);
            }
        }
    }

    fn finish_request(&mut self) {
        let i = self.pick();
        let open = self.running[i].open.len() as u64;
        if open == 0 {
            return;
        }
        let n = self.dice.below(open) as usize;
        let (id, data) = self.running[i].open.swap_remove(n);
        let bad = self.wanted.wild && data && self.dice.one_in(12);
        self.s
            .complete(id, if bad { Status::IOERR } else { Status::OK });
        if bad {
            let r = &mut self.running[i];
            if !r.failed {
                // The vector that was collected may still go, unless a bio is half sent.
                let between = r.todo.last().is_some_and(|t| t.part == Part::First);
                r.spare = between && self.dice.one_in(2);
            }
            r.failed = true;
            if self.dice.one_in(2) {
                let call = r.begin.call;
                self.s.mark(Mark::ErrorSeen { call });
            }
        }
    }

    fn end(&mut self) {
        let i = self.pick();
        let r = &mut self.running[i];
        r.give_up();
        let waits = r.open.iter().any(|(_, data)| *data);
        if waits || !r.todo.is_empty() {
            return;
        }
        let r = self.running.swap_remove(i);
        let dsync = !r.failed && r.begin.flags.iter().any(|f| f == "dsync");
        if dsync {
            let flush = self.s.submit(Op::Flush, 0, 0, 0);
            self.s.ok(flush);
        }
        // A log write may still be under way.
        self.strangers.extend(r.open.iter().map(|(id, _)| *id));
        let result = match r.failed {
            false => r.written as i64,
            true if r.written > 1 && self.dice.one_in(2) => self.dice.below(r.written) as i64,
            true => -5,
        };
        let number = r.begin.ino as usize;
        // The fsync phase of DSYNC asks for the mapping's error, if there is one.
        let asked = dsync && std::mem::take(&mut self.errors[number]);
        let result = if asked && self.dice.one_in(2) {
            -5
        } else {
            result
        };
        self.errors[number] |= r.failed;
        // The size moves when the data is copied, or when it is known to be written.
        let moves = if r.failed && self.dice.one_in(2) {
            result.max(0) as u64
        } else {
            r.begin.len
        };
        if moves > 0 {
            self.sizes[number] = self.sizes[number].max(r.begin.off + moves);
        }
        self.s.mark(Mark::End(CallEnd {
            call: r.begin.call,
            result,
            isize: self.sizes[number],
            extents: Some(r.after),
        }));
        self.read_back(&r.begin);
    }

    /// A reader tells what the first and the last block of a call hold now.
    fn read_back(&mut self, begin: &CallBegin) {
        let cache = &self.bytes[begin.ino as usize];
        if cache.is_empty() || self.dice.one_in(4) {
            return;
        }
        let last = (begin.off + begin.len - 1) / B * B;
        let mut blocks = vec![begin.off / B * B, last];
        blocks.dedup();
        for off in blocks {
            let digests = sectors(&cache[off as usize..(off + B) as usize]);
            let (dev, ino) = (8, begin.ino);
            self.s.file(FileMark::Contents(FileContents {
                dev,
                ino,
                off,
                digests,
            }));
        }
    }

    /// Somebody without a tag: background writeback, metadata, a flush.
    fn stranger(&mut self) {
        let at = match self.dice.below(3) {
            0 => (DISK / B + 1 + self.dice.below(self.free)) * B,
            1 => LOG + self.dice.below(1000) * 512,
            _ => (300 << 20) + self.dice.below(1000) * B,
        };
        let op = match self.dice.below(4) {
            0 => Op::Read,
            1 => Op::Flush,
            _ => Op::Write,
        };
        let bytes = 512 * (1 + self.dice.below(16));
        if op == Op::Write && self.s.is_flying(at, bytes) {
            return;
        }
        if op == Op::Write {
            self.somebody_changes(at, bytes);
        }
        let id = self.s.submit(op, (2 << 13) | 4, at, bytes);
        self.strangers.push(id);
    }

    /// Says that the blocks there were changed by somebody who is no marked call.
    fn somebody_changes(&mut self, at: u64, bytes: u64) {
        for disk in at / B..=(at + bytes - 1) / B {
            let holds = |f: &Layout| f.iter().position(|b| *b == Some(disk));
            for ino in 0..self.files.len() {
                let Some(block) = holds(&self.files[ino]) else {
                    continue;
                };
                self.numbers += 1;
                let change = self.numbers;
                self.s.file(FileMark::ChangeBegin(Change {
                    change,
                    dev: 8,
                    ino: ino as u64,
                    off: block as u64 * B,
                    len: B,
                    kind: if self.dice.one_in(2) { "write" } else { "mmap" }.into(),
                }));
                self.s.file(FileMark::ChangeEnd {
                    change,
                    result: None,
                });
            }
        }
    }

    /// A file that nobody is busy with: its pages are clean; its error is told, once.
    fn ask(&mut self) {
        let ino = self.dice.below(self.files.len() as u64);
        if self.running.iter().any(|r| r.begin.ino == ino) {
            return;
        }
        for _ in 0..self.dice.below(4) {
            self.s.file(FileMark::Pages(FilePages {
                dev: 8,
                ino,
                at: "between".into(),
                off: 0,
                len: BLOCKS * B,
                dirty: 0,
                writeback: 0,
            }));
        }
        self.numbers += 1;
        let sync = self.numbers;
        let (open, kind) = (100 + ino, "fsync".to_owned());
        self.s.file(FileMark::SyncBegin { sync, open, kind });
        let told = std::mem::take(&mut self.errors[ino as usize]);
        let result = if told { -5 } else { 0 };
        self.s.file(FileMark::SyncEnd { sync, result });
        let isize = self.sizes[ino as usize];
        let at = "between".to_owned();
        let dev = 8;
        self.s.file(FileMark::Stat {
            dev,
            ino,
            isize,
            at,
        });
    }

    /// Somebody wants to freeze the file system, which waits until no data of a call is in flight; then
    /// it is thawed at once.
    fn freeze(&mut self) {
        let dev = 8;
        if !std::mem::replace(&mut self.freezing, true) {
            self.s.file(FileMark::Freezing { dev });
        }
        let busy = |r: &Running| r.open.iter().any(|(_, data)| *data);
        if !self.running.iter().any(busy) {
            self.s.file(FileMark::Frozen { dev });
            self.s.file(FileMark::Thawing { dev });
            self.freezing = false;
        }
    }

    fn calm_strangers(&mut self) {
        for id in std::mem::take(&mut self.strangers) {
            self.s.ok(id);
        }
    }

    /// Pages of a call that ended: clear, or in the writeback of a stranger whose
    /// write is under way, or was preempted twice before it submitted it.
    fn report(&mut self) {
        let call = 1 + self.dice.below(self.call + 1);
        if self.running.iter().any(|r| r.begin.call == call) || call > self.call {
            return;
        }
        match self.dice.below(3) {
            0 => {}
            1 => {
                let block = DISK / B + 1 + self.dice.below(self.free);
                if self.s.is_flying(block * B, B) {
                    return;
                }
                self.somebody_changes(block * B, B);
                let id = self.s.stray(block * B, B);
                self.s.report(call, 1);
                self.s.report(call, 1);
                self.s.ok(id);
            }
            _ => {
                // A few writes of the file's blocks excuse the call.
                let file = &self.files[self.files_of[call as usize - 1]];
                let blocks: Vec<u64> = file.iter().flatten().map(|b| b * B).collect();
                let from = self.dice.below(blocks.len() as u64) as usize;
                let (first, last) = blocks.split_at(from);
                let of_file = last.iter().chain(first).copied();
                let idle = of_file.filter(|at| !self.s.is_flying(*at, B)).take(3);
                let idle: Vec<u64> = idle.collect();
                if idle.is_empty() {
                    return;
                }
                self.s.report(call, 2);
                self.s.report(call, 1);
                for at in idle {
                    self.somebody_changes(at, B);
                    let id = self.s.stray(at, B);
                    self.s.ok(id);
                }
            }
        }
        self.s.report(call, 0);
    }

    fn probe(&mut self) {
        self.probe += 1;
        self.s.probe(self.probe, self.call);
        match self.dice.below(3) {
            0 => {}
            1 => {
                let id = self.s.stray(LOG, 512);
                self.s.hold(id);
                self.s.probe_state(self.probe, 2500, 'D', 1);
                self.s.probe_state(self.probe, 2600, 'D', 1);
                self.s.ok(id);
            }
            _ => {
                self.s.probe_state(self.probe, 2500, 'D', 1);
                self.s.probe_state(self.probe, 2600, 'D', 2);
                self.s.probe_state(self.probe, 2600, 'S', 2);
            }
        }
        self.s.probe_end(self.probe);
    }
}

/// A digest for each sector.
fn sectors(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(512).map(XxHash3_64::oneshot).collect()
}

/// A stream in which every promise is kept.
pub fn legal(seed: u64, calls: u64, wanted: Wanted) -> Stream {
    let mut s = Kernel::new(seed, wanted).run(calls);
    s.mark(Mark::TestEnd { name: TEST.into() });
    s
}
