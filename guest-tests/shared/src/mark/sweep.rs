// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest says of a sweep: where a point begins, and what came of it as
//! far as a program can see.

use super::MarkError;
use super::text::{Keys, Writer};

/// Most bytes of each list of lines: encoded at worst three times as much, and two of them fit into a mark.
const MAX_LINES: usize = 5 * 1024;

/// A point of a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepMark {
    /// It begins.
    Begin(PointBegin),
    /// It is over.
    End(PointEnd),
}

/// Which point.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PointBegin {
    /// Its index ([`crate::sweep`]); `None`: the clean pass of the shape.
    pub index: Option<u64>,
    /// The test that the shape is of.
    pub test: String,
    /// The shape.
    pub shape: String,
    /// The fault; empty in a clean pass.
    pub fault: String,
    /// The requests that are to fail, from 1.
    pub requests: Vec<u32>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PointEnd {
    /// What the call returned: bytes, or minus the errno; `None`: it did not come back, or was not made.
    pub result: Option<i64>,
    /// What fsync returned.
    pub fsync: Option<i64>,
    /// What the rewrite returned.
    pub rewrite: Option<i64>,
    /// Requests counted in a clean pass.
    pub counted: Option<u32>,
    /// The file system was shut down.
    pub shut_down: bool,
    /// Where it hangs; the guest ends behind this mark.
    pub hung: Option<String>,
    /// What was wrong, as far as the guest sees.
    pub failures: Vec<String>,
    /// Warnings and errors that the kernel logged meanwhile.
    pub kernel: Vec<String>,
}

/// The verbs of these marks.
pub(super) const VERBS: [&str; 2] = ["point-begin", "point-end"];

impl SweepMark {
    pub(super) fn verb(&self) -> &'static str {
        VERBS[match self {
            SweepMark::Begin(_) => 0,
            SweepMark::End(_) => 1,
        }]
    }

    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            SweepMark::Begin(b) => {
                if let Some(index) = b.index {
                    w.num("index", index);
                }
                w.text("test", &b.test).text("shape", &b.shape);
                w.text("fault", &b.fault);
                let list: Vec<String> = b.requests.iter().map(u32::to_string).collect();
                w.text("requests", &list.join("+"));
            }
            SweepMark::End(e) => {
                for (key, value) in [
                    ("result", e.result),
                    ("fsync", e.fsync),
                    ("rewrite", e.rewrite),
                    ("counted", e.counted.map(i64::from)),
                ] {
                    if let Some(value) = value {
                        w.num(key, value);
                    }
                }
                w.num("shut_down", u8::from(e.shut_down));
                if let Some(hung) = &e.hung {
                    w.text("hung", hung);
                }
                w.text("failures", &joined(&e.failures));
                w.text("kernel", &joined(&e.kernel));
            }
        }
    }

    /// The mark with this verb, one of [`VERBS`].
    pub(super) fn parse(verb: &str, keys: &Keys) -> Result<SweepMark, MarkError> {
        Ok(match verb {
            "point-begin" => SweepMark::Begin(PointBegin {
                index: keys.opt("index")?,
                test: keys.text("test")?,
                shape: keys.text("shape")?,
                fault: keys.text("fault")?,
                requests: requests(keys)?,
            }),
            _ => SweepMark::End(PointEnd {
                result: keys.opt("result")?,
                fsync: keys.opt("fsync")?,
                rewrite: keys.opt("rewrite")?,
                counted: keys.opt("counted")?,
                shut_down: keys.num::<u8>("shut_down")? != 0,
                hung: keys.opt_text("hung"),
                failures: lines(keys.str("failures")?),
                kernel: lines(keys.str("kernel")?),
            }),
        })
    }
}

fn requests(keys: &Keys) -> Result<Vec<u32>, MarkError> {
    let (at, text) = keys.str_at("requests")?;
    let parts = text.split('+').filter(|part| !part.is_empty());
    let numbers: Result<_, _> = parts.map(str::parse).collect();
    numbers.map_err(|_| MarkError {
        at,
        what: "requests are numbers with + between".into(),
    })
}

/// One text of several lines, cut to what a mark has room for.
fn joined(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|l| l.replace('\n', " ")).collect();
    let mut text = list.join("\n");
    text.truncate(text.floor_char_boundary(MAX_LINES));
    text
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn each_comes_back() {
        let samples = [
            SweepMark::Begin(PointBegin {
                index: Some(7),
                test: "multi-extent".into(),
                shape: "holes".into(),
                fault: "ioerr".into(),
                requests: vec![3, 5],
            }),
            SweepMark::End(PointEnd {
                result: Some(-5),
                fsync: None,
                rewrite: Some(0),
                counted: Some(8),
                shut_down: true,
                hung: Some("fsync: state D in x".into()),
                failures: vec!["a b".into(), "c".into()],
                kernel: Vec::new(),
            }),
            SweepMark::Begin(PointBegin {
                shape: "x".into(),
                ..PointBegin::default()
            }),
        ];
        for sample in samples {
            let mark = Mark::Sweep(sample);
            assert_eq!(Mark::from_line(&mark.to_line()), Ok(mark));
        }
    }

    #[test]
    fn very_many_lines_fit_into_a_mark() {
        let end = SweepMark::End(PointEnd {
            failures: vec!["%".repeat(3000); 100],
            kernel: vec!["ä".repeat(100); 1000],
            ..PointEnd::default()
        });
        assert!(Mark::Sweep(end).to_block(512).is_some());
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "wtblk/1 point-begin index=1 test=a shape=b fault=c requests=x",
            "wtblk/1 point-begin index=1 test=a shape=b fault=c",
            "wtblk/1 point-end failures= kernel=",
        ] {
            assert!(Mark::from_line(line).is_err(), "{line}");
        }
    }
}
