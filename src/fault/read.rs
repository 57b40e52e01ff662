// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading typed values out of a TOML document whose every key and value knows
//! its place. All problems are collected: one run of the parser shows them all.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnosis::Problem;

/// A value with its place.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// The document being read, and what was found wrong with it.
pub(super) struct Reader<'t> {
    pub(super) file: &'t str,
    pub(super) text: &'t str,
    pub(super) problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn complain(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.problems
            .push(Problem::new(self.file, self.text, span, message.into()));
    }

    /// Every key of the table must be one of `known`.
    pub(super) fn only(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            if !known.contains(&key.get_ref().as_ref()) {
                let message = format!(
                    "unknown key `{}`, expected {}",
                    key.get_ref().escape_debug(),
                    one_of(known)
                );
                self.complain(key.span(), message);
            }
        }
    }

    fn wrong_type(&mut self, key: &str, value: &Value<'_>, expected: &str) {
        let message = format!(
            "`{key}` is {}, expected {expected}",
            type_of(value.get_ref())
        );
        self.complain(value.span(), message);
    }

    pub(super) fn string<'v>(
        &mut self,
        key: &str,
        value: &'v Value<'_>,
        expected: &str,
    ) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, expected);
        }
        text
    }

    pub(super) fn boolean(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        let bit = value.get_ref().as_bool();
        if bit.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        bit
    }

    pub(super) fn table<'v, 'i>(
        &mut self,
        key: &str,
        value: &'v Value<'i>,
        expected: &str,
    ) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(key, value, expected);
        }
        table
    }

    /// An integer of the range; `expected` says which.
    pub(super) fn integer(
        &mut self,
        key: &str,
        value: &Value<'_>,
        range: RangeInclusive<u64>,
        expected: &str,
    ) -> Option<u64> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, expected);
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let message = format!("`{key} = {integer}` is impossible, expected {expected}");
                self.complain(value.span(), message);
                None
            }
        }
    }
}

/// The value of a key.
pub(super) fn get<'v, 'i>(table: &'v DeTable<'i>, key: &str) -> Option<&'v Value<'i>> {
    table
        .iter()
        .find(|(k, _)| k.get_ref() == key)
        .map(|(_, value)| value)
}

/// `a`, `b` or `c`.
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
