// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Words, keys and values of a mark's line.

use std::borrow::Cow;
use std::collections::BTreeMap;
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

/// Of the line: only what is percent-encoded is copied.
pub(super) struct Keys<'l> {
    pub(super) verb: &'l str,
    pub(super) end: usize,
    pub(super) map: BTreeMap<&'l str, (usize, Cow<'l, str>)>,
}

impl<'l> Keys<'l> {
    pub(super) fn get(&self, key: &str) -> Result<&(usize, Cow<'l, str>), MarkError> {
        self.map.get(key).ok_or_else(|| MarkError {
            at: self.end,
            what: format!("'{}' needs {key}=", self.verb),
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<String, MarkError> {
        Ok(self.get(key)?.1.clone().into_owned())
    }

    pub(super) fn opt_text(&self, key: &str) -> Option<String> {
        self.map.get(key).map(|(_, v)| v.clone().into_owned())
    }

    pub(super) fn num<T: std::str::FromStr>(&self, key: &str) -> Result<T, MarkError> {
        let (at, value) = self.get(key)?;
        value.parse().map_err(|_| bad_number(*at, key, value))
    }

    pub(super) fn opt<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, MarkError> {
        match self.map.get(key) {
            None => Ok(None),
            Some((at, value)) => value
                .parse()
                .map(Some)
                .map_err(|_| bad_number(*at, key, value)),
        }
    }

    pub(super) fn pattern(&self) -> Result<Option<(u32, u32)>, MarkError> {
        let Some((at, value)) = self.map.get("pattern") else {
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
        let Some((at, value)) = self.map.get("ext") else {
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

pub(super) fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let base = line.as_ptr() as usize;
    line.split(' ')
        .filter(|w| !w.is_empty())
        .map(move |w| (w.as_ptr() as usize - base, w))
}

pub(super) fn decode(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains('%') {
        return Some(Cow::Borrowed(value));
    }
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
    String::from_utf8(out).ok().map(Cow::Owned)
}
