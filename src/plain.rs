// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text of a guest, of a file or of a file's name, made fit for a terminal: it may say
//! anything, but must not move the cursor, colour what follows or forge a line.

use std::path::Path;

/// On one line: what is no plain character is escaped.
pub fn line(text: &str) -> String {
    escaped(text, |_| None)
}

/// The same, but lines stay lines.
pub fn lines(text: &str) -> String {
    escaped(text, |c| (c == '\n').then_some('\n'))
}

/// The same as words that are broken into lines anew: the white space between them is one.
pub fn words(text: &str) -> String {
    escaped(text, |c| c.is_whitespace().then_some(' '))
}

/// The name of a file.
pub fn path(path: &Path) -> String {
    line(&path.to_string_lossy())
}

/// `1 file`, `2 files`.
pub fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn escaped(text: &str, instead: impl Fn(char) -> Option<char>) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match instead(c) {
            Some(other) => plain.push(other),
            None if is_plain(c) => plain.push(c),
            None => plain.extend(c.escape_default()),
        }
    }
    plain
}

/// Format characters (right-to-left marks and the like) are not control characters, but
/// they would turn the rest of the line around.
fn is_plain(c: char) -> bool {
    !c.is_control() && !('\u{200b}'..='\u{206f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(shell_word("a-b/c"), "a-b/c");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn nothing_reaches_a_terminal_but_characters() {
        let odd = "a\u{1b}[31m\u{9b}2J\u{202e}b\r\nc\td ä";
        assert_eq!(line(odd), r"a\u{1b}[31m\u{9b}2J\u{202e}b\r\nc\td ä");
        assert_eq!(lines(odd), "a\\u{1b}[31m\\u{9b}2J\\u{202e}b\\r\nc\\td ä");
        assert_eq!(words(odd), "a\\u{1b}[31m\\u{9b}2J\\u{202e}b  c d ä");
        assert_eq!(path(Path::new("/tmp/\u{7}")), r"/tmp/\u{7}");
        assert_eq!(
            (counted(1, "file", "files"), counted(0, "file", "files")),
            ("1 file".into(), "0 files".into())
        );
    }
}
