// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The trace file from outside: what is written comes back, whoever writes,
//! and whatever somebody did to the file. (How it ends: trace_loss.rs.)

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use wtblk::trace::event::*;
use wtblk::trace::{TraceError, TraceReader, TraceWriter};

const HEADER: u64 = 65536;

fn data_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

fn read_all(reader: &mut TraceReader) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        events.push(event);
    }
    events
}

fn submit(n: u64) -> Body {
    Body::Submit(Submit {
        disk: DATA_DISK,
        queue: (n >> 32) as u16,
        op: Op::Write,
        sector: n * 8,
        bytes: 4096,
        ioprio: 0x4008,
        epoch: 1,
        avail_pos: n as u16,
        digest: !n,
    })
}

fn note(text: impl Into<String>) -> Body {
    Body::Mark(MarkEvent {
        line: text.into(),
        ordered: true,
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop::sample::select(vec![
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::GetId,
        Op::Discard,
        Op::WriteZeroes,
        Op::Other,
    ])
}

fn any_kind() -> impl Strategy<Value = DeviceKind> {
    use DeviceKind::*;
    prop::sample::select(vec![
        Connected,
        Disconnected,
        Message,
        Features,
        QueueStart,
        QueueStop,
        CacheMode,
        Reset,
        BadChain,
        BadRing,
        BadMark,
        Release,
        Wait,
        StoreError,
        End,
        Begin,
        Limit,
        Scenario,
        Changed,
    ])
}

fn any_body() -> impl Strategy<Value = Body> {
    let status = any::<u8>().prop_map(Status);
    prop_oneof![
        (any::<(u8, u16, u64, u32, u16, u32, u16, u64)>(), any_op()).prop_map(
            |((disk, queue, sector, bytes, ioprio, epoch, avail_pos, digest), op)| {
                Body::Submit(Submit {
                    disk,
                    queue,
                    op,
                    sector,
                    bytes,
                    ioprio,
                    epoch,
                    avail_pos,
                    digest,
                })
            }
        ),
        (
            any::<(u64, u16, bool)>(),
            prop::option::of(status.clone()),
            ".{0,40}",
            ".{0,40}"
        )
            .prop_map(
                |((request, rule, hold), status, name, plan)| Body::Decide(Decide {
                    request,
                    rule,
                    hold,
                    status,
                    name,
                    plan
                })
            ),
        (any::<(u64, u16, bool, u64)>(), status).prop_map(
            |((request, avail_after, abandoned, digest), status)| Body::Complete(Complete {
                request,
                status,
                avail_after,
                abandoned,
                digest
            })
        ),
        (".{0,300}", any::<bool>())
            .prop_map(|(line, ordered)| Body::Mark(MarkEvent { line, ordered })),
        (any::<(u8, u16, u64, u64)>(), any_kind(), ".{0,30}").prop_map(
            |((disk, queue, a, b), kind, text)| Body::Device(DeviceEvent {
                disk,
                queue,
                kind,
                a,
                b,
                text
            })
        ),
        (
            any::<u64>(),
            0u64..1 << 56,
            prop::sample::select(vec![
                DataKind::Stored,
                DataKind::Read,
                DataKind::Failed,
                DataKind::Digests,
                DataKind::Zeroed
            ]),
            prop::collection::vec(any::<u8>(), 0..2000)
        )
            .prop_map(|(request, sector, kind, bytes)| Body::Data(DataEvent {
                request,
                kind,
                sector,
                bytes
            })),
        // A recorded gap stands for its own number only.
        ".{0,30}".prop_map(|why| Body::Gap(Gap { missing: 1, why })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_event_comes_back(bodies in prop::collection::vec(any_body(), 0..60), close: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let writer = TraceWriter::create(&path).unwrap();
        for (n, body) in bodies.iter().enumerate() {
            prop_assert_eq!(writer.record(body), n as u64);
        }
        if close {
            writer.close();
        }
        let mut reader = TraceReader::open(&path).unwrap();
        let events = read_all(&mut reader);
        prop_assert_eq!(reader.closed(), close);
        prop_assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(),
            (0..bodies.len() as u64).collect::<Vec<_>>());
        prop_assert!(events.is_sorted_by_key(|e| e.time_ns));
        prop_assert_eq!(events.into_iter().map(|e| e.body).collect::<Vec<_>>(), bodies);
    }

    /// Flipped bits and cut files: an error or other events, never a panic, always an end.
    #[test]
    fn damage_is_never_a_panic(
        flips in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0u8..8), 0..20),
        cut in prop::option::of((any::<bool>(), any::<prop::sample::Index>())),
        live: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let writer = TraceWriter::create(&path).unwrap();
        for n in 0..10 {
            writer.record(&submit(n));
            writer.record(&note(format!("wtblk/1 note text={n}")));
        }
        writer.close();
        for (in_data, at, bit) in flips {
            let name = if in_data { data_of(&path) } else { path.clone() };
            let mut bytes = fs::read(&name).unwrap();
            // Where something is written: the begin of the header, the gap table, the records.
            let places: Vec<usize> = (0..64).chain(4096..4160).chain(65536..67000)
                .filter(|&p| p < bytes.len()).collect();
            bytes[*at.get(&places)] ^= 1 << bit;
            fs::write(&name, bytes).unwrap();
        }
        if let Some((in_data, at)) = cut {
            let name = if in_data { data_of(&path) } else { path.clone() };
            let bytes = fs::read(&name).unwrap();
            fs::write(&name, &bytes[..at.index(bytes.len())]).unwrap();
        }
        let opened = if live { TraceReader::open_live(&path) } else { TraceReader::open(&path) };
        if let Ok(mut reader) = opened {
            for _ in 0..10_000 {
                match reader.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(reader.next().unwrap_err().to_string(), error.to_string());
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_text_that_is_not_there_and_one_that_is_damaged_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    writer.record(&note("a text of some length"));
    writer.close();
    let data = fs::OpenOptions::new()
        .write(true)
        .open(data_of(&path))
        .unwrap();
    let said = || {
        let mut reader = TraceReader::open(&path).unwrap();
        reader.next().unwrap_err().to_string()
    };
    data.write_all_at(b"A", HEADER).unwrap();
    assert!(said().ends_with("has a wrong checksum"), "{}", said());
    data.write_all_at(&[0; 24], HEADER).unwrap();
    assert!(said().ends_with("is not there"), "{}", said());
    data.set_len(HEADER).unwrap();
    assert!(said().ends_with("is not there"), "{}", said());
}

/// A number that a killed writer took is no damage, even where another one went on and closed.
#[test]
fn a_hole_of_a_killed_writer_is_no_damage_and_one_of_a_closed_trace_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    writer.record(&submit(0));
    writer.reserve();
    writer.record(&submit(2));
    drop(writer);
    let (writer, _) = TraceWriter::go_on(&path, |_| Ok(())).unwrap();
    writer.record(&submit(3));
    writer.close();
    drop(writer);
    let read = || {
        let mut reader = TraceReader::open(&path).unwrap();
        let events = read_all(&mut reader);
        assert!(reader.closed());
        (events, reader.damage().map(str::to_owned))
    };
    let (events, damage) = read();
    assert_eq!(damage, None);
    let Body::Gap(gap) = &events[1].body else {
        panic!("{:?}", events[1])
    };
    assert_eq!((events.len(), gap.missing), (4, 1));
    assert!(gap.why.contains("killed"), "{}", gap.why);
    // Noted once, however often it goes on.
    let header = || fs::read(&path).unwrap()[..HEADER as usize].to_vec();
    let before = header();
    for _ in 0..5 {
        let (writer, left) = TraceWriter::go_on(&path, |_| Ok(())).unwrap();
        assert!(left.open.len() == 3);
        writer.close();
        drop(writer);
    }
    assert!(header() == before);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 64], HEADER + 2 * 64).unwrap();
    let (events, damage) = read();
    let damage = damage.unwrap();
    assert!(damage.contains("event 2 is missing"), "{damage}");
    let gaps = events.iter().filter(|e| matches!(e.body, Body::Gap(_)));
    assert_eq!(gaps.count(), 2);
}

#[test]
fn a_damaged_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    for n in 0..5 {
        writer.record(&submit(n));
    }
    writer.close();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55], HEADER + 3 * 64 + 33).unwrap();
    let mut reader = TraceReader::open(&path).unwrap();
    for _ in 0..3 {
        reader.next().unwrap().unwrap();
    }
    let error = reader.next().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "trace {} is damaged at record 3: its checksum is wrong",
            path.display()
        )
    );
}

#[test]
fn many_writers_and_a_reader_behind_them() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 40_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = Arc::new(TraceWriter::create(&path).unwrap());
    let mut reader = TraceReader::open_live(&path).unwrap();
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let running = &running;
        let follower = scope.spawn(move || {
            let mut next = [0; WRITERS as usize];
            let mut count = 0;
            loop {
                let over = !running.load(Ordering::Acquire);
                while let Some(event) = reader.next().unwrap() {
                    assert_eq!(event.seq, count, "strictly in order, no number left out");
                    count += 1;
                    let (who, n) = match event.body {
                        Body::Submit(s) => (u64::from(s.queue), (s.sector / 8) & 0xffff_ffff),
                        Body::Mark(m) => {
                            let (who, n) = m.line.split_once(' ').unwrap();
                            (who.parse().unwrap(), n.parse().unwrap())
                        }
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(next[who as usize], n);
                    next[who as usize] = n + 1;
                }
                if over && reader.closed() {
                    return count;
                }
                std::thread::yield_now();
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|who| {
                let writer = Arc::clone(&writer);
                scope.spawn(move || {
                    for n in 0..EACH {
                        if n % 7 == 0 {
                            writer.record(&note(format!("{who} {n}")));
                        } else {
                            let seq = writer.reserve();
                            writer.commit(seq, &submit(who << 32 | n));
                        }
                    }
                })
            })
            .collect();
        for thread in writers {
            thread.join().unwrap();
        }
        writer.close();
        running.store(false, Ordering::Release);
        assert_eq!(follower.join().unwrap(), WRITERS * EACH);
    });
}

#[test]
fn a_live_reader_waits_at_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    let mut reader = TraceReader::open_live(&path).unwrap();
    assert_eq!(reader.next().unwrap(), None);
    let first = writer.reserve();
    writer.record(&submit(1));
    assert_eq!(reader.next().unwrap(), None);
    writer.commit(first, &submit(0));
    assert_eq!(reader.next().unwrap().unwrap().body, submit(0));
    assert_eq!(reader.next().unwrap().unwrap().body, submit(1));
    writer.reserve();
    writer.record(&submit(3));
    assert_eq!(reader.next().unwrap(), None);
    reader.set_final();
    assert!(matches!(
        reader.next().unwrap().unwrap().body,
        Body::Gap(Gap { missing: 1, .. })
    ));
    assert_eq!(reader.next().unwrap().unwrap().body, submit(3));
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn a_closed_trace_is_small_and_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    writer.record(&note("one"));
    writer.reserve();
    writer.close();
    writer.record(&note("too late"));
    writer.close();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * HEADER);
    assert_eq!(fs::metadata(data_of(&path)).unwrap().len(), 2 * HEADER);
    let mut reader = TraceReader::open_live(&path).unwrap();
    let events = read_all(&mut reader);
    assert!(reader.closed());
    assert_eq!(events.len(), 2);
    assert!(
        matches!(events[1].body, Body::Gap(Gap { missing: 1, .. })),
        "{events:?}"
    );
}

#[test]
fn a_null_trace_counts() {
    let writer = TraceWriter::null();
    assert_eq!((writer.reserve(), writer.record(&note("x"))), (0, 1));
    writer.close();
}

fn patched(patch: impl FnOnce(&Path)) -> Result<Vec<Event>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    writer.record(&note("here"));
    writer.close();
    patch(&path);
    let text = |e: TraceError| e.to_string().replace(dir.path().to_str().unwrap(), "DIR");
    let mut reader = TraceReader::open(&path).map_err(text)?;
    Ok(read_all(&mut reader))
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn what_is_no_trace_of_ours_is_refused_in_a_sentence() {
    assert_eq!(
        patched(|p| overwrite(p, 8, &[2, 0, 7, 0])).unwrap_err(),
        "trace DIR/t has format 2.7, this wtblk reads up to 1.x (it writes 1.2): use a newer wtblk"
    );
    assert_eq!(
        patched(|p| overwrite(p, 0, b"ELF")).unwrap_err(),
        "DIR/t is no wtblk trace: its first bytes are others"
    );
    assert_eq!(
        patched(|p| overwrite(p, 12, &[32])).unwrap_err(),
        "DIR/t is no wtblk trace: format 1.2 with records of 32 bytes never existed"
    );
    assert_eq!(
        patched(|p| overwrite(&data_of(p), 16, &[1, 2, 3, 4])).unwrap_err(),
        "DIR/t.data is no wtblk trace: it belongs to another trace"
    );
    assert_eq!(
        patched(|p| fs::remove_file(data_of(p)).unwrap()).unwrap_err(),
        "cannot open trace DIR/t.data: No such file or directory (os error 2)"
    );
    assert_eq!(
        patched(|p| fs::write(p, "").unwrap()).unwrap_err(),
        "DIR/t is no wtblk trace: its first bytes are others"
    );
    // A newer minor is read.
    assert_eq!(
        patched(|p| overwrite(p, 8, &[1, 0, 9, 0])).unwrap().len(),
        1
    );
}

#[test]
fn a_device_is_not_replaced_by_a_trace() {
    let error = TraceWriter::create(Path::new("/dev/null")).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    let error = TraceWriter::create(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(
        error.to_string().contains("/nowhere/at/all: No such file"),
        "{error}"
    );
}

#[test]
fn a_trace_that_is_written_is_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let refused = |error: wtblk::trace::TraceError| {
        let said = error.to_string();
        assert!(said.contains("is in use by this process"), "{said}");
    };
    let first = TraceWriter::create(&path).unwrap();
    first.record(&note("kept"));
    refused(TraceWriter::create(&path).unwrap_err());
    refused(TraceWriter::go_on(&path, |_| Ok(())).unwrap_err());
    // Nor is its other file the name of a trace.
    let error = TraceWriter::create(&data_of(&path)).unwrap_err();
    assert!(error.to_string().contains("is no trace"), "{error}");
    first.record(&note("this, too"));
    first.close();
    drop(first);
    assert_eq!(read_all(&mut TraceReader::open(&path).unwrap()).len(), 2);
    // What does not fit is left as it is.
    let error = TraceWriter::go_on(&path, |_| Err("another disk".into())).unwrap_err();
    assert!(error.to_string().contains("another disk"), "{error}");
    assert!(TraceReader::open(&path).unwrap().closed());
    let (second, _) = TraceWriter::go_on(&path, |_| Ok(())).unwrap();
    refused(TraceWriter::create(&path).unwrap_err());
    second.record(&note("third"));
    drop(second);
    assert_eq!(read_all(&mut TraceReader::open(&path).unwrap()).len(), 3);
}
