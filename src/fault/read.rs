// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading typed values out of a TOML document whose every key and value knows
//! its place. All problems are collected: one run of the parser shows them all.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnosis::{Problem, meant};
use super::keys::{Key, elsewhere};

/// Problems that are kept: finding the line of each costs a walk through the text.
const MAX_PROBLEMS: usize = 200;

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
        if self.problems.len() < MAX_PROBLEMS {
            let problem = Problem::new(self.file, self.text, span, message.into());
            self.problems.push(problem);
        }
    }

    /// The same, with what may have been meant.
    pub(super) fn complain_meant(
        &mut self,
        span: Range<usize>,
        message: String,
        hint: Option<String>,
    ) {
        if self.problems.len() < MAX_PROBLEMS {
            let mut problem = Problem::new(self.file, self.text, span, message);
            problem.hint = hint;
            self.problems.push(problem);
        }
    }

    /// The line in which a span begins.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        Problem::new(self.file, self.text, span.clone(), String::new()).line
    }

    /// Every key of the table must be one of `known`.
    pub(super) fn only(&mut self, table: &DeTable<'_>, known: &[Key]) {
        let known: Vec<&str> = known.iter().map(|k| k.name).collect();
        for key in table.keys() {
            let said = key.get_ref().as_ref();
            if !known.contains(&said) {
                let message = format!(
                    "unknown key `{}`, expected {}",
                    said.escape_debug(),
                    one_of(&known)
                );
                let near = || meant(said, &known).map(|w| format!("did you mean `{w}`?"));
                let hint = elsewhere(said).or_else(near);
                self.complain_meant(key.span(), message, hint);
            }
        }
    }

    pub(super) fn wrong_type(&mut self, key: &str, value: &Value<'_>, expected: &str) {
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

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        known: &[(&str, T)],
    ) -> Option<T> {
        let words: Vec<&str> = known.iter().map(|k| k.0).collect();
        let expected = one_of(&words);
        let text = self.string(key, value, &expected)?;
        let found = known.iter().find(|k| k.0 == text).map(|k| k.1);
        if found.is_none() {
            let message = format!(
                "`{key}` knows no `{}`, expected {expected}",
                text.escape_debug()
            );
            let hint = meant(text, &words).map(|w| format!("did you mean `{w}`?"));
            self.complain_meant(value.span(), message, hint);
        }
        found
    }

    /// A list, or one thing that stands for a list of one.
    pub(super) fn one_or_more<'v, 'i>(&mut self, value: &'v Value<'i>) -> Vec<&'v Value<'i>> {
        match value.get_ref() {
            DeValue::Array(list) => {
                if list.is_empty() {
                    self.complain(value.span(), "an empty list, expected at least one");
                }
                list.iter().collect()
            }
            _ => vec![value],
        }
    }

    /// The value of a switch that can only be on.
    pub(super) fn switch(&mut self, key: &str, value: &Value<'_>) -> bool {
        match value.get_ref().as_bool() {
            Some(on) => on,
            None => {
                self.wrong_type(key, value, "true");
                false
            }
        }
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
