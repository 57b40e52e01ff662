// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is to be served: options beat the scenario, that beats defaults; what
//! contradicts itself is refused.

use std::fs::File;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wtblk_shared::disk::{DATA_NAME, DATA_SERIAL, MARK_SERIAL, SECTOR};

use super::socket::Address;
use crate::fault::request::{Decision, DeviceFault, Request};
use crate::fault::{self, DataAction, OnStop, Scenario, SectorRange, Shape};
use crate::input;
use crate::sandbox::Sandbox;
use crate::store::{
    Aio, Cache, FileStore, ImageOptions, KeptStore, MemoryStore, NullStore, PoisonStore, Store,
    VolatileStore, holes,
};

/// Most queues: the index of SET_VRING_KICK has eight bits.
const MAX_QUEUES: u16 = 256;
/// Most disks beside the disk under test.
const MAX_MORE: usize = 16;
/// Largest disk, bytes: 1 EiB. Sums of places and lengths stay far from the end of the numbers.
const MAX_SIZE: u64 = 1 << 60;
/// Largest disk with poison, bytes: 16 TiB. A bit for each sector makes 4 GiB of that.
const MAX_POISONED: u64 = 16 << 40;
/// Longest name of such a disk: its serial is `wtblk-` and this.
const MAX_NAME: usize = 14;

/// Where the bytes of the disk live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A raw image file; with a size it is created where it does not exist.
    Image(PathBuf, Option<u64>),
    /// Memory of this many bytes.
    Memory(u64),
    /// Nothing: so many bytes that are neither stored nor read.
    Null(u64),
    /// Memory of the size that the scenario says.
    Scenario,
}

/// Whether an idle queue is looked at for a while before its worker sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// For 50 us: a request that comes in that time is taken at once, without a kick.
    #[default]
    Auto,
    /// For 2 us after it has done something, less than going to sleep and being woken up takes.
    Brief,
    /// Not at all: it sleeps until its kick fd wakes it.
    Off,
}

impl Poll {
    /// How long.
    pub(super) fn look(self) -> Duration {
        match self {
            Poll::Auto => Duration::from_micros(50),
            Poll::Brief => Duration::from_micros(2),
            Poll::Off => Duration::ZERO,
        }
    }
}

/// Decisions made by hand, asked for before the rules: for tests of the device alone.
pub type Plans = Arc<Mutex<dyn FnMut(&Request) -> Option<Decision> + Send>>;

/// Puts a layer of its own on a disk's store: for tests of the device alone.
pub type Wrap = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// Whose data is looked at when a request is taken and when it is completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DigestOf {
    /// Nobody's.
    Off,
    /// That of requests with the tag of an open marked call, or in its blocks.
    #[default]
    Marked,
    /// That of all reads and writes.
    All,
}

impl DigestOf {
    /// As the option spells it.
    pub fn name(self) -> &'static str {
        match self {
            DigestOf::Off => "off",
            DigestOf::Marked => "marked",
            DigestOf::All => "all",
        }
    }
}

/// Whose contents go into the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DataOf {
    /// Those of all reads and writes.
    All,
    /// Those of writes.
    Writes,
    /// Those of writes that fail.
    Failing,
    /// None.
    #[default]
    None,
}

/// What is recorded of the requests' data, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Whose data is looked at.
    pub digest: DigestOf,
    /// Bytes kept at a time of the data of marked calls' writes in flight, to be compared.
    pub digest_memory: u64,
    /// Whose contents go into the trace.
    pub data: DataOf,
    /// Bytes of contents that the trace takes.
    pub data_limit: u64,
}

impl DataOf {
    /// As the option spells it.
    pub fn name(self) -> &'static str {
        match self {
            DataOf::All => "all",
            DataOf::Writes => "writes",
            DataOf::Failing => "failing",
            DataOf::None => "none",
        }
    }
}

impl Recording {
    /// The options of `wtblk serve` that ask for it.
    pub fn options(&self) -> [String; 4] {
        [
            format!("--digest={}", self.digest.name()),
            format!("--digest-memory={}", self.digest_memory),
            format!("--trace-data={}", self.data.name()),
            format!("--trace-data-limit={}", self.data_limit),
        ]
    }
}

impl Default for Recording {
    fn default() -> Recording {
        Recording {
            digest: DigestOf::default(),
            digest_memory: 16 << 20,
            data: DataOf::default(),
            data_limit: 256 << 20,
        }
    }
}

/// A disk beside the disk under test. It has the same layers and settings but for these.
#[derive(Clone, Debug)]
pub struct MoreDisk {
    /// Its name: rules say it.
    pub name: String,
    /// Where its front end connects.
    pub socket: Address,
    /// Where its bytes live.
    pub backing: Backing,
    /// What it is like to its driver.
    pub shape: Shape,
}

/// What [`ServeConfig::marks_per_second`] is where nobody says otherwise.
pub const MARKS_PER_SECOND: u32 = 10_000;

/// Everything that `wtblk serve` is told.
#[derive(Clone)]
pub struct ServeConfig {
    /// Where the front end of the disk under test connects.
    pub socket: Address,
    /// Where that of the mark disk does; `None`: there is no mark disk.
    pub mark_socket: Option<Address>,
    /// Where the bytes live.
    pub backing: Backing,
    /// Disks beside the disk under test.
    pub more: Vec<MoreDisk>,
    /// Scenario files, merged in this order.
    pub scenarios: Vec<PathBuf>,
    /// Where the events go; `None`: nowhere.
    pub trace: Option<PathBuf>,
    /// The trace at this path goes on, where there is one; else it is made anew.
    pub continue_trace: bool,
    /// What is recorded of the requests' data.
    pub recording: Recording,
    /// Seed of the rules.
    pub seed: u64,
    /// Where the control socket is made; `None`: there is none.
    pub control: Option<PathBuf>,
    /// Keep what was not flushed out of the image, whether the rules need that or not.
    pub volatile_cache: bool,
    /// What was never written reads as poison.
    pub poison: bool,
    /// What the disk is like to its driver; beats the scenario.
    pub shape: Shape,
    /// Whether workers look at their rings before they sleep.
    pub poll: Poll,
    /// How an image is read and written.
    pub aio: Aio,
    /// Images are not locked.
    pub unlocked: bool,
    /// Whether the threads that serve are kept from what serving does not take. Where the caller is
    /// a thread among others it holds for this one and those that it starts.
    pub sandbox: Sandbox,
    /// Marks that are taken in a second; more wait.
    pub marks_per_second: u32,
    /// Decisions made by hand.
    pub plans: Option<Plans>,
    /// A layer on top of each disk's store.
    pub wrap: Option<Wrap>,
    /// Beyond those of the rules: ranges whose old contents are kept.
    pub kept: Vec<SectorRange>,
    /// The device ends when the other end of this closes, as at a signal.
    pub end: Option<Arc<UnixStream>>,
}

/// What a configuration comes to, its scenario included.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the disk is like to its driver, without contradictions.
    pub shape: Shape,
    /// Held requests are abandoned when their ring stops.
    pub abandon_on_stop: bool,
    /// Whether workers look at their rings before they sleep.
    pub poll: Poll,
    /// How an image is read and written.
    pub aio: Aio,
    /// Images are not locked.
    pub unlocked: bool,
    /// Where the bytes live, the scenario's size applied.
    pub backing: Backing,
    /// The merged scenario.
    pub scenario: Scenario,
    /// The other disks, by name: numbers 1 and on. Their scenario is empty.
    pub more: Vec<(String, Address, Settings)>,
}

/// Where the bytes live: the topmost layer, and the volatile cache where there is one.
pub(super) struct Layers {
    pub store: Arc<dyn Store>,
    pub cache: Option<Arc<Cache>>,
}

/// A disk has whole blocks, and not too many. (Of an image that is there the length is looked at
/// when it is opened.)
fn sized(backing: &Backing, shape: &Shape) -> Result<()> {
    let block = shape.block();
    let size = match backing {
        Backing::Image(_, Some(size)) | Backing::Memory(size) | Backing::Null(size) => *size,
        Backing::Image(_, None) | Backing::Scenario => return Ok(()),
    };
    if size == 0 || size % u64::from(block) != 0 {
        bail!("a disk of {size} bytes, expected a multiple of its logical block of {block}");
    }
    if size > MAX_SIZE {
        bail!("a disk of {size} bytes, expected at most {MAX_SIZE} (1 EiB)");
    }
    Ok(())
}

/// Every front end has a socket of its own.
fn separate(config: &ServeConfig) -> Result<()> {
    let mut all = vec![("the disk".to_owned(), config.socket.clone())];
    let more = config.more.iter();
    all.extend(more.map(|disk| (format!("disk {}", disk.name), disk.socket.clone())));
    all.extend(
        config
            .mark_socket
            .clone()
            .map(|a| ("the mark disk".into(), a)),
    );
    let control = config.control.clone().map(Address::Path);
    all.extend(control.map(|a| ("the control socket".into(), a)));
    for (n, (second, address)) in all.iter().enumerate() {
        let same = |other: &&(String, Address)| other.1.place() == address.place();
        if let Some((first, _)) = all[..n].iter().find(same) {
            bail!("{first} and {second} need a socket each, and both are given {address}");
        }
    }
    Ok(())
}

impl Settings {
    /// Reads the scenario files and settles everything.
    pub fn of(config: &ServeConfig) -> Result<Settings> {
        let mut parsed = Vec::new();
        for path in &config.scenarios {
            let text = input::text(path, "scenario", fault::MAX_TEXT)?;
            parsed.push(Scenario::parse(&path.display().to_string(), &text)?);
        }
        let scenario = Scenario::merge(parsed)?;
        let device = &scenario.device;
        let shape = config.shape.over(&device.shape());
        if let Some((key, why)) = shape.contradictions().first() {
            bail!("{}: {why}", key.replace('_', "-"));
        }
        let backing = match &config.backing {
            Backing::Image(path, size) => Backing::Image(path.clone(), size.or(device.size())),
            Backing::Scenario => match device.size() {
                Some(size) => Backing::Memory(size),
                None => bail!(
                    "where do the bytes live? Give --image FILE or --memory SIZE, or `size` in the scenario's [device]"
                ),
            },
            memory => memory.clone(),
        };
        sized(&backing, &shape)?;
        separate(config)?;
        if config.volatile_cache && matches!(backing, Backing::Null(_)) {
            bail!("--volatile-cache on a disk that stores nothing (--null)");
        }
        let mut settings = Settings {
            shape,
            abandon_on_stop: device.on_stop() == Some(OnStop::Abandon),
            poll: config.poll,
            aio: config.aio,
            unlocked: config.unlocked,
            backing,
            scenario,
            more: Vec::new(),
        };
        settings.add(&config.more)?;
        settings.tell_apart(config.mark_socket.is_some())?;
        Ok(settings)
    }

    /// A guest knows the disks by their serials.
    fn tell_apart(&self, marks: bool) -> Result<()> {
        let mut seen: Vec<&str> = marks.then_some(MARK_SERIAL).into_iter().collect();
        for settings in std::iter::once(self).chain(self.more.iter().map(|(_, _, s)| s)) {
            let serial = settings.serial();
            if seen.contains(&serial) {
                bail!("two disks have the serial {serial}: the guest could not tell them apart");
            }
            seen.push(serial);
        }
        Ok(())
    }

    /// The other disks: names and numbers must be their own, and every rule's disk be there.
    fn add(&mut self, more: &[MoreDisk]) -> Result<()> {
        for disk in more {
            let name = &disk.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
                let why = "letters, digits, `-`, `_` or `.`";
                bail!(
                    "a disk named '{}', expected 1 to {MAX_NAME} {why}",
                    name.escape_debug()
                );
            }
            let taken = self.more.iter().any(|(other, ..)| other == name);
            if taken || name == DATA_NAME || name == "mark" {
                bail!("two disks are named {name} (data and mark are always there)");
            }
            let mut shape = disk.shape.clone();
            shape.serial.get_or_insert_with(|| format!("wtblk-{name}"));
            if let Some((key, why)) = shape.contradictions().first() {
                bail!("disk {name}: {}: {why}", key.replace('_', "-"));
            }
            sized(&disk.backing, &shape).with_context(|| format!("disk {name}"))?;
            let settings = Settings {
                shape,
                abandon_on_stop: self.abandon_on_stop,
                poll: self.poll,
                aio: self.aio,
                unlocked: self.unlocked,
                backing: disk.backing.clone(),
                scenario: Scenario::default(),
                more: Vec::new(),
            };
            self.more
                .push((name.clone(), disk.socket.clone(), settings));
        }
        if self.more.len() > MAX_MORE {
            bail!(
                "{} disks with --disk, expected at most {MAX_MORE}",
                self.more.len()
            );
        }
        let others = self.more.iter().map(|(_, _, s)| s.queues());
        let queues = others.fold(self.queues(), u16::saturating_add);
        if queues > MAX_QUEUES {
            bail!("{queues} queues, expected 1 to {MAX_QUEUES}");
        }
        for rule in &self.scenario.rules {
            if let Some(disk) = &rule.disk
                && self.more.iter().all(|(name, ..)| name != disk)
            {
                bail!(
                    "the rule {} is about the disk {disk}, and there is none of this name (--disk name={disk},...)",
                    rule.name
                );
            }
        }
        Ok(())
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.shape.queues.unwrap_or(1)
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.shape.read_only.unwrap_or(false)
    }

    /// The writeback byte at start.
    pub fn write_cache(&self) -> bool {
        self.shape.write_cache.unwrap_or(true)
    }

    /// Logical block in bytes.
    pub fn block(&self) -> u32 {
        self.shape.block()
    }

    /// What GET_ID gives.
    pub fn serial(&self) -> &str {
        self.shape.serial.as_deref().unwrap_or(DATA_SERIAL)
    }

    /// Whether a rule asks what is durable on this disk (`None`: on the disk under test).
    pub(super) fn needs_cache(&self, disk: Option<&str>) -> bool {
        self.scenario.rules.iter().any(|rule| {
            let ours = rule.disk.as_deref() == disk;
            let flush = matches!(
                rule.action.data,
                Some(DataAction::DropFlush | DataAction::LateFlush(_))
            );
            // The power is that of all disks.
            (ours && flush) || rule.action.device == Some(DeviceFault::Cut)
        })
    }

    /// Opens where the bytes live.
    pub(super) fn store(
        &self,
        poison: bool,
        volatile: bool,
        kept: &[SectorRange],
    ) -> Result<Layers> {
        let mut store = self.bottom()?;
        if poison && store.capacity() > MAX_POISONED {
            bail!(
                "poison on a disk of {} bytes, expected at most {MAX_POISONED} (16 TiB)",
                store.capacity()
            );
        }
        if poison {
            // Below the cache: what is lost there was never written.
            let holes = self.never_written(store.capacity())?;
            store = Arc::new(PoisonStore::new(store, &holes));
        }
        let mut cache = None;
        if volatile && !self.read_only() {
            let layer = VolatileStore::new(store).context("cannot make a volatile cache")?;
            cache = Some(layer.cache());
            store = Arc::new(layer);
        }
        if !kept.is_empty() {
            let bytes = |r: &SectorRange| {
                let end = r.start.saturating_add(r.len).saturating_mul(SECTOR);
                let end = end.min(store.capacity());
                r.start.saturating_mul(SECTOR).min(end)..end
            };
            let ranges = kept.iter().map(bytes).collect();
            store = Arc::new(KeptStore::new(store, ranges)?);
        }
        Ok(Layers { store, cache })
    }

    fn never_written(&self, capacity: u64) -> Result<Vec<Range<u64>>> {
        match &self.backing {
            Backing::Image(path, _) => {
                let shown = path.display();
                File::open(path)
                    .and_then(|file| holes::never_written(&file))
                    .with_context(|| format!("poison: image {shown}"))
            }
            Backing::Memory(_) => Ok(std::iter::once(0..capacity).collect()),
            Backing::Null(_) | Backing::Scenario => bail!("poison on a disk that stores nothing"),
        }
    }

    fn bottom(&self) -> Result<Arc<dyn Store>> {
        Ok(match &self.backing {
            Backing::Image(path, size) => {
                let options = ImageOptions {
                    create: *size,
                    read_only: self.read_only(),
                    block: self.block(),
                    aio: self.aio,
                    unlocked: self.unlocked,
                };
                Arc::new(FileStore::open(path, &options)?)
            }
            Backing::Null(size) => Arc::new(NullStore::new(*size)?),
            Backing::Memory(size) => Arc::new(
                MemoryStore::new(*size)
                    .with_context(|| format!("cannot make a disk of {size} bytes in memory"))?,
            ),
            // Settled by `of`.
            Backing::Scenario => bail!("a disk without a size"),
        })
    }
}
