// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queue of the mark disk: a write to its first 64 KiB is a mark, a read
//! from 1 MiB on tells the state. Because the guest waits for the write, a
//! mark is ordered against the data requests without any clock.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use wtblk_shared::disk::{MARK_AREA, MARK_DISK_LEN, MARK_SERIAL, SECTOR, STATE_LEN, STATE_OFFSET};
use wtblk_shared::mark::{Control, Mark};

use super::carry::scatter;
use super::command::{ANSWER_LIMIT, Command, WorkerHandle};
use super::data_queue::id;
use super::hub::Hub;
use super::orders;
use super::rate::Rate;
use super::request::Parsed;
use super::worker::{Done, QueueDevice, Taken};
use crate::control::WaitFor;
use crate::trace::event::{Body, DeviceKind, MARK_DISK, MarkEvent, Op, Status};

/// How long a `wait` keeps its mark: short of what the kernel takes for a hung task.
const WAIT_LIMIT: Duration = Duration::from_secs(5);
/// So long marks wait for disks to run again after their device was killed: QEMU connects anew once
/// a second.
const RETURN_LIMIT: Duration = Duration::from_secs(5);
/// Most waits at once; the next ones are answered "not yet" at once.
const WAITS: usize = 64;

/// A mark that waits for a state of the device.
struct Wait {
    token: u64,
    what: WaitFor,
    until: Instant,
}

/// See the module.
pub(super) struct MarkQueue {
    hub: Arc<Hub>,
    data: Arc<Vec<WorkerHandle>>,
    waits: Vec<Wait>,
    over: Vec<Done>,
    rate: Rate,
    /// Marks that came too fast, or too early; the ring's size is their bound.
    late: VecDeque<(u64, Taken)>,
    /// Until when they wait for disks that were killed; set by the first that does.
    return_by: Option<Instant>,
    /// One barrier was for all marks that are served now.
    passed: bool,
    /// Number of the last mark.
    last: u64,
    /// What the last wait that ended came to.
    wait: &'static str,
}

impl MarkQueue {
    /// `data`: the workers of the disk under test, for the barrier.
    pub fn new(hub: Arc<Hub>, data: Arc<Vec<WorkerHandle>>, per_second: u32) -> MarkQueue {
        MarkQueue {
            hub,
            data,
            waits: Vec::new(),
            over: Vec::new(),
            rate: Rate::new(per_second, Instant::now()),
            late: VecDeque::new(),
            return_by: None,
            passed: false,
            last: 0,
            wait: "none",
        }
    }

    fn event(&self, kind: DeviceKind, a: u64, b: u64, text: &str) {
        self.hub.event(MARK_DISK, 0, kind, a, b, text);
    }

    fn finish(&mut self, token: u64, status: Status, written: u32) {
        self.over.push(Done {
            token,
            status,
            written,
            used_len: None,
            abandon: false,
        });
    }

    fn refuse(&mut self, token: u64, why: &str) {
        tracing::warn!("mark refused: {why}");
        self.event(DeviceKind::BadMark, 0, 0, why);
        self.finish(token, Status::IOERR, 0);
    }

    /// The device was killed, and not all disks run again yet: what the guest made available there
    /// before the mark could be numbered after it.
    fn early(&mut self) -> bool {
        if self.hub.returned() {
            return false;
        }
        let now = Instant::now();
        if now < *self.return_by.get_or_insert(now + RETURN_LIMIT) {
            return true;
        }
        self.go_ahead();
        false
    }

    /// Marks wait no longer.
    fn go_ahead(&self) {
        let text = "a disk that was killed does not run again: marks go ahead of its requests";
        tracing::warn!("{text}");
        self.event(DeviceKind::Limit, RETURN_LIMIT.as_secs(), 0, text);
        self.hub.set_returned(None);
    }

    /// Takes a write, unless it is early or there were too many of late: then it waits, and so do
    /// those behind it.
    fn write(&mut self, token: u64, taken: Taken) -> Option<u64> {
        if self.early() {
            self.late.push_back((token, taken));
            return None;
        }
        // Those that were early have their turn first.
        self.serve_late(false);
        if self.late.is_empty() && self.rate.takes(Instant::now()) {
            return self.serve(token, &taken);
        }
        if !self.rate.said {
            self.rate.said = true;
            let limit = self.rate.per_second;
            let text = format!("more than {limit} marks in a second: the next ones wait");
            tracing::warn!("{text}");
            self.event(DeviceKind::Limit, u64::from(limit), 0, &text);
        }
        self.late.push_back((token, taken));
        None
    }

    /// Those whose turn has come; with `all` all of them: the ring stops.
    fn serve_late(&mut self, all: bool) {
        if self.late.is_empty() || !all && self.early() {
            return;
        }
        if all {
            if !self.hub.returned() {
                self.go_ahead();
            }
            // What was requested before the last of them was before the others, too, or beside them.
            self.barrier();
            self.passed = true;
        }
        while !self.late.is_empty() && (all || self.rate.takes(Instant::now())) {
            if let Some((token, taken)) = self.late.pop_front() {
                self.serve(token, &taken);
            }
        }
        self.passed = false;
    }

    /// The number of the mark that it is.
    fn serve(&mut self, token: u64, taken: &Taken) -> Option<u64> {
        let parsed = taken.parsed.as_ref().ok()?;
        match parsed.op {
            Op::Write => match read_mark(taken, parsed) {
                Ok((mark, event)) => match orders::unknown(&self.hub, &mark) {
                    None => return Some(self.mark(token, mark, event, taken.again)),
                    Some(why) => self.refuse(token, &why),
                },
                Err(why) => self.refuse(token, &why),
            },
            Op::Read => match self.read(taken, parsed) {
                Some(written) => self.finish(token, Status::OK, written),
                None => self.finish(token, Status::IOERR, 0),
            },
            Op::GetId => match scatter(&taken.map, &parsed.data, &id(MARK_SERIAL)) {
                Some(written) => self.finish(token, Status::OK, written),
                None => self.finish(token, Status::IOERR, 0),
            },
            Op::Flush => self.finish(token, Status::OK, 0),
            Op::Discard | Op::WriteZeroes | Op::Other => self.finish(token, Status::UNSUPP, 0),
        }
        None
    }

    fn mark(&mut self, token: u64, mark: Mark, event: MarkEvent, again: Option<u32>) -> u64 {
        if !self.passed {
            self.barrier();
        }
        self.hub.mark(&mark);
        // A mark that a device recorded which was killed before the guest heard of it is in the
        // trace already, where that goes on.
        let known = again.filter(|&number| number != 0 && self.hub.trace.goes_on());
        let number = match known {
            Some(number) => u64::from(number),
            None => self.hub.trace.record(&Body::Mark(event)),
        };
        self.last = number;
        match mark {
            Mark::Control(Control::Release(rule)) => {
                orders::release(&self.hub, rule.as_deref());
                self.finish(token, Status::OK, 0);
            }
            Mark::Control(Control::WaitHeld(held)) => self.wait(token, WaitFor::Held(held)),
            Mark::Control(Control::WaitState(state)) => self.wait(token, WaitFor::State(state)),
            Mark::Control(Control::WaitFired(rule, n)) => {
                self.wait(token, WaitFor::Fired(rule, n));
            }
            _ => self.finish(token, Status::OK, 0),
        }
        number
    }

    fn wait(&mut self, token: u64, what: WaitFor) {
        let limit = if self.waits.len() < WAITS {
            WAIT_LIMIT
        } else {
            Duration::ZERO
        };
        let until = Instant::now() + limit;
        self.waits.push(Wait { token, what, until });
    }

    /// Whatever the guest made available before it wrote the mark is taken, and so numbered,
    /// before the mark is: each data queue is asked to take what its ring shows now.
    fn barrier(&self) {
        let until = Instant::now() + ANSWER_LIMIT;
        let asked: Vec<_> = self.data.iter().map(|w| w.post(Command::Sync)).collect();
        for (worker, pending) in asked.into_iter().enumerate() {
            if let Err(error) = pending.wait(until) {
                let mut disks = self.hub.disks().iter();
                let of = disks.rfind(|d| usize::from(d.first_worker) <= worker);
                let disk = of.map_or(0, |d| d.number);
                let text = format!("mark barrier: disk {disk}: {error}");
                self.event(DeviceKind::Limit, 0, 0, &text);
            }
        }
    }

    /// Ends the waits that have what they wait for, or whose time is over.
    fn end_waits(&mut self, all: bool) -> u64 {
        let now = Instant::now();
        let waits = std::mem::take(&mut self.waits);
        let before = waits.len();
        for wait in waits {
            let reached = orders::is_so(&self.hub, &wait.what);
            if !(reached || all || now >= wait.until) {
                self.waits.push(wait);
                continue;
            }
            self.wait = if reached { "ok" } else { "not-yet" };
            let text = orders::wait_text(&wait.what);
            let held = self.hub.held();
            self.event(DeviceKind::Wait, u64::from(reached), held, &text);
            self.finish(wait.token, Status::OK, 0);
        }
        (before - self.waits.len()) as u64
    }

    /// Zeros, and the state page.
    fn read(&self, taken: &Taken, parsed: &Parsed) -> Option<u32> {
        let offset = in_disk(parsed)?;
        let mut bytes = vec![0u8; parsed.bytes as usize];
        let page = self.state_page();
        for (at, byte) in (STATE_OFFSET..).zip(page) {
            let index = at.checked_sub(offset).and_then(|i| usize::try_from(i).ok());
            if let Some(to) = index.and_then(|i| bytes.get_mut(i)) {
                *to = byte;
            }
        }
        scatter(&taken.map, &parsed.data, &bytes)
    }

    fn state_page(&self) -> Vec<u8> {
        page(orders::state_page(&self.hub, self.last, self.wait))
    }
}

/// The line with its newline. What has no room is left out whole, and `...` says so: half a
/// rule would be taken for another one.
fn page(line: String) -> Vec<u8> {
    let mut page = line.into_bytes();
    if page.len() >= STATE_LEN {
        page.truncate(STATE_LEN - 4);
        let end = page.iter().rposition(|&byte| byte == b',');
        page.truncate(end.map_or(0, |end| end + 1));
        page.extend_from_slice(b"...");
    }
    page.push(b'\n');
    page
}

/// Byte offset of a request that lies inside the disk (which also bounds its length).
fn in_disk(parsed: &Parsed) -> Option<u64> {
    let offset = parsed.sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(u64::from(parsed.bytes))?;
    let whole = u64::from(parsed.bytes) % SECTOR == 0;
    (whole && end <= MARK_DISK_LEN).then_some(offset)
}

fn read_mark(taken: &Taken, parsed: &Parsed) -> Result<(Mark, MarkEvent), String> {
    let offset = in_disk(parsed).ok_or("a write beyond the disk")?;
    let end = offset + u64::from(parsed.bytes);
    if end > MARK_AREA {
        return Err(format!(
            "a write to bytes {offset}..{end}, marks go to the first {MARK_AREA}"
        ));
    }
    let mut bytes = vec![0u8; parsed.bytes as usize];
    let mut at = 0;
    for segment in &parsed.data {
        let part = &mut bytes[at..at + segment.len as usize];
        let read = taken.map.read_slice(part, GuestAddress(segment.addr));
        read.map_err(|e| e.to_string())?;
        at += segment.len as usize;
    }
    let mark = Mark::from_block(&bytes).map_err(|e| e.to_string())?;
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let ordered = is_ordered(offset, bytes.len(), line.len());
    let line = String::from_utf8_lossy(line).into_owned();
    Ok((mark, MarkEvent { line, ordered }))
}

/// A mark that the guest waited for is one write at the start of the disk, padded to the next
/// sector. The page cache writes whole pages, whenever it likes: more padding than that.
fn is_ordered(offset: u64, written: usize, line: usize) -> bool {
    offset == 0 && written == (line + 1).next_multiple_of(SECTOR as usize)
}

impl QueueDevice for MarkQueue {
    fn take(&mut self, token: u64, taken: Taken) -> Option<u64> {
        match &taken.parsed {
            Ok(parsed) if parsed.op == Op::Write => return self.write(token, taken),
            Ok(_) => return self.serve(token, &taken),
            Err(malformed) => {
                let head = u64::from(taken.head);
                self.event(DeviceKind::BadChain, head, 0, &malformed.what);
                self.finish(token, Status::IOERR, 0);
            }
        }
        None
    }

    fn poll(&mut self, done: &mut Vec<Done>) {
        self.hub.changed().drain();
        self.serve_late(false);
        self.end_waits(false);
        done.append(&mut self.over);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.hub.changed().as_fd()
    }

    fn deadline(&self) -> Option<Instant> {
        if !self.over.is_empty() {
            return Some(Instant::now());
        }
        let early = self.return_by.filter(|_| !self.hub.returned());
        let next = || early.unwrap_or_else(|| self.rate.next(Instant::now()));
        let next = (!self.late.is_empty()).then(next);
        let waits = self.waits.iter().map(|w| w.until);
        waits.chain(next).min()
    }

    fn release(&mut self, _rule: Option<&str>) -> u64 {
        0
    }

    fn stop(&mut self) -> u64 {
        self.serve_late(true);
        self.end_waits(true)
    }

    fn abandon_all(&mut self) -> Vec<u64> {
        // None of them is the host kernel's.
        self.waits.clear();
        self.late.clear();
        self.over.clear();
        Vec::new()
    }

    fn publishing(&mut self, _: &Done) -> Option<u64> {
        None
    }

    fn published(&mut self, _: Option<u64>, _: &Done, _: u16, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::{STATE_LEN, is_ordered, page};

    #[test]
    fn a_page_ends_with_a_whole_rule() {
        assert_eq!(page("a=1,b=2".into()), b"a=1,b=2\n");
        let full = "r=".to_owned() + &"x".repeat(STATE_LEN - 3);
        assert_eq!(page(full.clone()).len(), STATE_LEN);
        for more in 1..40 {
            let rules: String = (0..STATE_LEN).map(|n| format!(",r{n}:0:0")).collect();
            let text = String::from_utf8(page("x".repeat(more) + &rules)).unwrap();
            assert!(text.len() <= STATE_LEN && text.len() > STATE_LEN - 16);
            assert!(text.ends_with(":0:0,...\n"), "{text}");
        }
    }

    #[test]
    fn the_page_cache_is_told_from_a_direct_write() {
        assert!(is_ordered(0, 512, 20));
        assert!(is_ordered(0, 512, 511));
        assert!(is_ordered(0, 1024, 512));
        assert!(is_ordered(0, 4096, 4000));
        assert!(!is_ordered(0, 4096, 20));
        assert!(!is_ordered(512, 512, 20));
    }
}
