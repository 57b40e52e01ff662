// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk scenario` and `wtblk replay`, at their functions.

use std::path::{Path, PathBuf};

use serde_json::Value;
use wtblk::cli::replay::{Replay, ReplayArgs};
use wtblk::cli::scenario::{check, load};
use wtblk::fault::{Engine, Scenario, explain, schema};
use wtblk::trace::TraceWriter;
use wtblk::trace::event::{
    Body, Complete, DeviceEvent, DeviceKind, Event, MarkEvent, Op, Status, Submit,
};
use wtblk_shared::tag::Tag;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_committed_schema_is_that_of_the_parser() {
    let path = root().join("docs/scenario.schema.json");
    let now = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        committed, now,
        "UPDATE=1 cargo test --test scenario_cli writes it anew"
    );
}

/// Every key that there is has its row in the documentation.
#[test]
fn every_key_is_documented() {
    let page = std::fs::read_to_string(root().join("docs/scenario.md")).unwrap();
    let mut keys = Vec::new();
    collect(&schema(), &mut keys);
    assert!(keys.len() > 60);
    for key in keys {
        assert!(
            page.contains(&format!("`{key}`"))
                || page.contains(&format!("[{key}]"))
                || page.contains(&format!("{key} =")),
            "{key} is not in docs/scenario.md"
        );
    }
}

fn collect(schema: &Value, keys: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                keys.extend(properties.keys().cloned());
            }
            map.values().for_each(|v| collect(v, keys));
        }
        Value::Array(list) => list.iter().for_each(|v| collect(v, keys)),
        _ => {}
    }
}

/// Does the value satisfy the schema? As much of JSON schema as ours uses, but for patterns.
fn fits(schema: &Value, value: &Value, whole: &Value) -> bool {
    if schema.get("$ref").is_some() {
        return fits(&whole["$defs"]["when"], value, whole);
    }
    if let Some(Value::Array(any)) = schema.get("anyOf") {
        return any.iter().any(|s| fits(s, value, whole));
    }
    if let Some(Value::Array(words)) = schema.get("enum") {
        return words.contains(value);
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer" | "number") => value.as_f64().is_some_and(|n| {
            number("minimum").is_none_or(|min| n >= min)
                && number("maximum").is_none_or(|max| n <= max)
        }),
        Some("array") => value
            .as_array()
            .is_some_and(|list| list.iter().all(|v| fits(&schema["items"], v, whole))),
        Some("object") => value.as_object().is_some_and(|map| {
            let known = map.iter().all(|(key, v)| {
                let s = schema["properties"].get(key);
                s.is_some_and(|s| fits(s, v, whole))
            });
            let required = schema["required"].as_array().into_iter().flatten();
            known
                && required
                    .into_iter()
                    .all(|k| map.contains_key(k.as_str().unwrap_or_default()))
        }),
        _ => false,
    }
}

fn scenarios() -> Vec<PathBuf> {
    let mut list: Vec<_> = ["", "/actions", "/defects"]
        .map(|folder| format!("guest-tests/scenarios{folder}"))
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(root().join(folder)).unwrap())
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    list.sort();
    list
}

/// The ready-made files, and all examples of the documentation that are whole files.
#[test]
fn ready_made_files_are_good_and_fit_the_schema() {
    let page = std::fs::read_to_string(root().join("docs/scenario.md")).unwrap();
    let mut texts: Vec<String> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|t| t.split("```").next())
        .filter(|t| t.starts_with("version"))
        .map(str::to_owned)
        .collect();
    for file in scenarios() {
        texts.push(std::fs::read_to_string(file).unwrap());
    }
    assert!(texts.len() >= 25);
    let schema = schema();
    for text in texts {
        let scenario = Scenario::parse("f", &text).unwrap_or_else(|e| panic!("{text}{e}"));
        assert!(!explain(&scenario).is_empty());
        let value: Value = toml::from_str(&text).unwrap();
        assert!(fits(&schema, &value, &schema), "{text}");
    }
    let value: Value = toml::from_str("version = 1\nfualt = []").unwrap();
    assert!(
        !fits(&schema, &value, &schema),
        "the checker of this test sees something"
    );
}

#[test]
fn check_shows_all_mistakes_of_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let rule =
        "version = 1\n[[fault]]\nname = \"a\"\nwhen = { op = \"any\" }\naction = { hold = true }\n";
    let many: String = (0..30).map(|n| format!("k{n} = 1\n")).collect();
    let bad = file("bad.toml", &format!("version = 1\n{many}"));
    let worse = file("worse.toml", "version = 2\n");
    let good = file("good.toml", rule);
    let twin = file("twin.toml", &format!("{rule}times = 2\n"));
    let run = |files: &[PathBuf]| {
        let mut out = Vec::new();
        let code = check(files, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    };
    let missing = dir.path().join("missing.toml");
    let (code, text) = run(&[bad, worse, good.clone(), missing]);
    assert_eq!(code, 2);
    assert!(
        text.contains("k29") && text.contains("worse.toml:1:11") && text.contains("missing.toml")
    );
    assert!(text.ends_with("32 mistakes\n"), "{text}");
    let (code, text) = run(&[good.clone(), twin]);
    assert!(code == 2 && text.contains("not together"), "{text}");
    assert_eq!(run(&[good]), (0, "1 file, 1 rule: good\n".to_owned()));
    assert_eq!(run(&scenarios()[..1]).0, 0);
}

#[test]
fn explain_says_it_in_plain_words() {
    let text = "version = 1
[[fault]]
name = \"second\"
when = { op = \"write\", nth_in_call = 2 }
action = { status = \"ioerr\", hold = { limit = \"500ms\", until = { mark = \"go\" } } }
times = 1
[[fault]]
name = \"torn\"
when = { op = \"write\", state = \"armed\", file = \"4096+4096\" }
action = { delay = \"5ms\", torn = { first = 1 } }
";
    assert_eq!(
        explain(&Scenario::parse("f", text).unwrap()),
        "second: when it is a write and it is the 2nd write of its call's data:
  - it is kept back until the rule is released, or the note \"go\" has come since it was kept back, at most 500 ms;
  - it completes with IOERR, and nothing is stored or read;
  once, unless a rule before it fires.
  In an allocating call (blocks without a place at its begin) it falls back to the 2nd write that carries the call's tag, log writes and zeroing included.

torn: when it is a write and it touches bytes 4096 to 8191 of the file of its call and the rules are in the state `armed`:
  - it waits 5 ms;
  - only its first 1 sectors are stored;
  every time, unless a rule before it fires.
  It passes over what is not a write or a write-zeroes.
  In an allocating call (blocks without a place at its begin) it falls back to counting: its tagged requests are taken to come in ascending file order, each behind the one before.

No rule moves to the state `armed`: only an order from outside does.
"
    );
}

fn story() -> Vec<Event> {
    let submit = |sector| {
        Body::Submit(Submit {
            disk: 0,
            queue: 0,
            op: Op::Write,
            sector,
            bytes: 4096,
            ioprio: Tag::nth(5).ioprio(),
            epoch: 1,
            avail_pos: 0,
            digest: 0,
        })
    };
    let mark = |line: &str| {
        Body::Mark(MarkEvent {
            line: line.into(),
            ordered: true,
        })
    };
    let bodies = vec![
        mark(
            "wtblk/1 begin call=1 test=t dev=1 ino=9 open=1 off=0 len=8192 flags=writethrough isize=8192 bsize=4096 tag=5 ext=0:0:8192:0",
        ),
        submit(0),
        submit(8),
        Body::Complete(Complete {
            request: 1,
            status: Status::OK,
            avail_after: 2,
            abandoned: false,
            digest: 0,
        }),
        mark("wtblk/1 end call=1 result=8192 isize=8192"),
        submit(8),
    ];
    (0u64..)
        .zip(bodies)
        .map(|(seq, body)| Event {
            seq,
            time_ns: seq * 1000,
            body,
        })
        .collect()
}

#[test]
fn replay_tells_which_rules_would_have_fired() {
    let text = "version = 1
[[fault]]
name = \"second\"
when = { op = \"write\", nth_in_call = 2, inflight = 2 }
action = { hold = { until = { completions = 1 } } }
[[fault]]
name = \"late\"
when = { op = \"write\", in_call = false }
action = { drop = true }
";
    let scenario = Scenario::parse("f", text).unwrap();
    let run = || {
        let mut replay = Replay::new(Engine::new(&scenario, 1));
        let mut lines: Vec<String> = story().iter().flat_map(|e| replay.event(e)).collect();
        lines.extend(replay.summary());
        lines
    };
    assert_eq!(
        run(),
        [
            "       2 #2 write 8+4096 B: rule 0 (second): hold",
            "       3 what second holds would be let go",
            "       5 #5 write 8+4096 B: rule 1 (late): dropped",
            "second: fired 1 of 1 seen",
            "late: fired 1 of 1 seen",
            "state start, seed 1",
        ]
    );
    assert_eq!(run(), run());
    assert!(load(&[root().join("nowhere.toml")]).is_err());
}

#[test]
fn a_replay_draws_with_the_seed_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("f.toml");
    let text = "version = 1\n[[fault]]\nname = \"dice\"\nwhen = { probability = 0.5 }\naction = { drop = true }\n";
    std::fs::write(&rules, text).unwrap();
    let run = |recorded: Option<u64>, seed| {
        let trace = dir.path().join("trace");
        let writer = TraceWriter::create(&trace).unwrap();
        if let Some(seed) = recorded {
            writer.record(&Body::Device(DeviceEvent {
                disk: 0,
                queue: 0,
                kind: DeviceKind::Scenario,
                a: 1,
                b: seed,
                text: text.into(),
            }));
        }
        for event in story() {
            writer.record(&event.body);
        }
        writer.close();
        let scenarios = vec![rules.clone()];
        let mut out = Vec::new();
        let args = ReplayArgs {
            trace,
            scenarios,
            seed,
        };
        args.run(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        out.lines().last().unwrap().to_owned()
    };
    assert_eq!(run(Some(77), None), "state start, seed 77");
    assert_eq!(run(Some(77), Some(5)), "state start, seed 5");
    // As `wtblk serve` draws.
    assert_eq!(run(None, None), "state start, seed 0");
}
