// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Words, keys and values of a mark's line.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::{Extent, MAGIC, MarkError};

pub(super) struct Writer {
    pub(super) line: String,
}

impl Writer {
    pub(super) fn new(verb: &str) -> Writer {
        Writer {
            line: format!("{MAGIC} {verb}"),
        }
    }

    pub(super) fn num(&mut self, key: &str, value: impl fmt::Display) -> &mut Self {
        let _ = write!(self.line, " {key}={value}");
        self
    }

    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        let _ = write!(self.line, " {key}=");
        for b in value.bytes() {
            if b <= b' ' || b == b'%' || b > 0x7e {
                let _ = write!(self.line, "%{b:02x}");
            } else {
                self.line.push(b as char);
            }
        }
        self
    }

    pub(super) fn extents(&mut self, extents: &Option<Vec<Extent>>) {
        let Some(extents) = extents else { return };
        self.line.push_str(" ext=");
        for (i, e) in extents.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(
                self.line,
                "{comma}{}:{}:{}:{}",
                e.logical, e.physical, e.length, e.flags
            );
        }
    }
}

/// Keys that are looked through for one that is said twice; of more there is a set.
const FEW: usize = 32;

/// Of the line: only what is percent-encoded is copied.
pub(super) struct Keys<'l> {
    verb: &'l str,
    end: usize,
    list: Vec<Key<'l>>,
    /// All of them, where they are many.
    seen: BTreeSet<&'l str>,
    /// Where the next one is looked for first: they are asked for in the order of the line.
    next: Cell<usize>,
}

/// A key, the place of its word in the line, and its value.
pub(super) struct Key<'l> {
    key: &'l str,
    at: usize,
    value: Cow<'l, str>,
}

impl<'l> Keys<'l> {
    /// The keys of these words.
    pub(super) fn read(verb: &'l str, end: usize, words: Words<'l>) -> Result<Keys<'l>, MarkError> {
        let mut keys = Keys {
            verb,
            end,
            list: Vec::with_capacity(FEW / 2),
            seen: BTreeSet::new(),
            next: Cell::new(0),
        };
        for word in words {
            let at = word.at;
            let Some((key, value)) = word.key_value() else {
                return Err(MarkError {
                    at,
                    what: format!("'{}', expected key=value", shorten(word.text)),
                });
            };
            let value = match word.escaped {
                false => Cow::Borrowed(value),
                true => Cow::Owned(decode(value).ok_or_else(|| MarkError {
                    at,
                    what: format!("bad percent-encoding in '{key}'"),
                })?),
            };
            if !keys.is_new(key) {
                return Err(MarkError {
                    at,
                    what: format!("'{}' is said twice", shorten(key)),
                });
            }
            keys.list.push(Key { key, at, value });
        }
        Ok(keys)
    }

    fn is_new(&mut self, key: &'l str) -> bool {
        if self.list.len() < FEW {
            return self.list.iter().all(|k| k.key != key);
        }
        if self.seen.is_empty() {
            self.seen.extend(self.list.iter().map(|k| k.key));
        }
        self.seen.insert(key)
    }

    /// All keys with their values.
    pub(super) fn into_all(self) -> impl Iterator<Item = (String, String)> {
        let all = self.list.into_iter();
        all.map(|k| (k.key.to_owned(), k.value.into_owned()))
    }

    fn find(&self, key: &str) -> Option<&Key<'l>> {
        let next = self.next.get();
        let at = match self.list.get(next) {
            Some(k) if k.key == key => next,
            _ => self.list.iter().position(|k| k.key == key)?,
        };
        self.next.set(at + 1);
        self.list.get(at)
    }

    fn get(&self, key: &str) -> Result<&Key<'l>, MarkError> {
        self.find(key).ok_or_else(|| MarkError {
            at: self.end,
            what: format!("'{}' needs {key}=", self.verb),
        })
    }

    pub(super) fn str(&self, key: &str) -> Result<&str, MarkError> {
        self.str_at(key).map(|(_, value)| value)
    }

    /// A value, and where its word begins.
    pub(super) fn str_at(&self, key: &str) -> Result<(usize, &str), MarkError> {
        self.get(key).map(|k| (k.at, &*k.value))
    }

    pub(super) fn text(&self, key: &str) -> Result<String, MarkError> {
        self.str(key).map(str::to_owned)
    }

    pub(super) fn opt_text(&self, key: &str) -> Option<String> {
        self.find(key).map(|k| k.value.clone().into_owned())
    }

    pub(super) fn num<T: std::str::FromStr>(&self, key: &str) -> Result<T, MarkError> {
        let Key { at, value, .. } = self.get(key)?;
        value.parse().map_err(|_| bad_number(*at, key, value))
    }

    pub(super) fn opt<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, MarkError> {
        match self.find(key) {
            None => Ok(None),
            Some(Key { at, value, .. }) => value
                .parse()
                .map(Some)
                .map_err(|_| bad_number(*at, key, value)),
        }
    }

    pub(super) fn pattern(&self) -> Result<Option<(u32, u32)>, MarkError> {
        let Some(Key { at, value, .. }) = self.find("pattern") else {
            return Ok(None);
        };
        let parsed = value
            .split_once(':')
            .and_then(|(f, v)| Some((f.parse().ok()?, v.parse().ok()?)));
        parsed.map(Some).ok_or_else(|| MarkError {
            at: *at,
            what: format!("pattern '{}', expected FILE:VERSION", shorten(value)),
        })
    }

    pub(super) fn extents(&self) -> Result<Option<Vec<Extent>>, MarkError> {
        let Some(Key { at, value, .. }) = self.find("ext") else {
            return Ok(None);
        };
        let mut list = Vec::new();
        for part in value.split(',').filter(|p| !p.is_empty()) {
            let extent = parse_extent(part).ok_or_else(|| MarkError {
                at: *at,
                what: format!(
                    "extent '{}', expected LOGICAL:PHYSICAL:LENGTH:FLAGS in bytes",
                    shorten(part)
                ),
            })?;
            list.push(extent);
        }
        Ok(Some(list))
    }
}

/// `None` also where an end would pass 2^64: no reader needs to check again.
fn parse_extent(part: &str) -> Option<Extent> {
    let mut fields = part.split(':');
    let extent = Extent {
        logical: fields.next()?.parse().ok()?,
        physical: fields.next()?.parse().ok()?,
        length: fields.next()?.parse().ok()?,
        flags: fields.next()?.parse().ok()?,
    };
    extent.logical.checked_add(extent.length)?;
    extent.physical.checked_add(extent.length)?;
    fields.next().is_none().then_some(extent)
}

fn bad_number(at: usize, key: &str, value: &str) -> MarkError {
    MarkError {
        at,
        what: format!("{key}='{}' is no number in range", shorten(value)),
    }
}

pub(super) fn shorten(s: &str) -> String {
    if s.chars().count() > 40 {
        s.chars().take(40).chain("...".chars()).collect()
    } else {
        s.to_owned()
    }
}

/// A word of a line.
pub(super) struct Word<'l> {
    /// Its place.
    pub(super) at: usize,
    pub(super) text: &'l str,
    /// The place of its first `=` in it.
    equals: Option<usize>,
    /// There is a `%` behind that.
    escaped: bool,
}

impl<'l> Word<'l> {
    fn key_value(&self) -> Option<(&'l str, &'l str)> {
        let equals = self.equals?;
        Some((self.text.get(..equals)?, self.text.get(equals + 1..)?))
    }
}

/// The words of a line, between spaces.
pub(super) struct Words<'l> {
    line: &'l str,
    at: usize,
}

pub(super) fn words(line: &str) -> Words<'_> {
    Words { line, at: 0 }
}

impl<'l> Iterator for Words<'l> {
    type Item = Word<'l>;

    fn next(&mut self) -> Option<Word<'l>> {
        let bytes = self.line.as_bytes();
        let begin = self.at + bytes.get(self.at..)?.iter().position(|b| *b != b' ')?;
        let (mut equals, mut escaped) = (None, false);
        let mut end = begin;
        while let Some(b) = bytes.get(end).filter(|b| **b != b' ') {
            match b {
                b'=' if equals.is_none() => equals = Some(end - begin),
                b'%' if equals.is_some() => escaped = true,
                _ => {}
            }
            end += 1;
        }
        self.at = end;
        Some(Word {
            at: begin,
            text: self.line.get(begin..end)?,
            equals,
            escaped,
        })
    }
}

fn decode(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hi = (bytes.next()? as char).to_digit(16)?;
            let lo = (bytes.next()? as char).to_digit(16)?;
            out.push((hi * 16 + lo) as u8);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}
