// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The value of `RWF_WRITETHROUGH` in a tree's `include/uapi/linux/fs.h`.

use anyhow::{Context, Result, bail};

/// What is looked for.
const NAME: &str = "RWF_WRITETHROUGH";
/// Brackets within brackets that are followed. A header has two or three.
const DEEP: u32 = 16;

/// A flag's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its value, one bit.
    pub value: u32,
    /// The line where it stands.
    pub line: usize,
}

/// The flag as this header defines it; `None` where it does not.
pub fn flag(header: &str) -> Result<Option<Definition>> {
    let mut found: Option<Definition> = None;
    for (line, text) in logical_lines(&without_comments(header)) {
        let Some(body) = definition(&text) else {
            continue;
        };
        let value = value(body).with_context(|| {
            format!(
                "line {line} defines {NAME} as '{body}', which is not understood; give its value with --flag"
            )
        })?;
        let Some(value) = u32::try_from(value).ok().filter(|v| v.is_power_of_two()) else {
            bail!("line {line} defines {NAME} as '{body}': {value:#x} is not one bit of 32");
        };
        if let Some(first) = found.filter(|first| first.value != value) {
            bail!(
                "lines {} and {line} define {NAME} differently ({:#x} and {value:#x}); give its value with --flag",
                first.line,
                first.value
            );
        }
        found = found.or(Some(Definition { value, line }));
    }
    Ok(found)
}

/// The text with blanks and newlines in place of its comments, so that lines keep their numbers.
fn without_comments(text: &str) -> String {
    let mut left = text;
    let mut plain = String::with_capacity(text.len());
    loop {
        let (begin, end) = match (left.find("/*"), left.find("//")) {
            (Some(block), line) if line.is_none_or(|line| block < line) => (block, "*/"),
            (_, Some(line)) => (line, "\n"),
            _ => return plain + left,
        };
        let (before, comment) = left.split_at(begin);
        plain.push_str(before);
        plain.push(' ');
        let after = comment.get(2..).unwrap_or_default();
        let len = after.find(end).unwrap_or(after.len());
        let (comment, rest) = after.split_at(len);
        plain.extend(comment.matches('\n'));
        left = match end {
            "*/" => rest.get(2..).unwrap_or_default(),
            _ => rest,
        };
    }
}

/// Lines as the preprocessor sees them, joined at backslashes, with the number of their first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let part = line.strip_suffix('\\');
        match lines.last_mut().filter(|_| goes_on) {
            Some((_, last)) => last.push_str(part.unwrap_or(line)),
            None => lines.push((n + 1, part.unwrap_or(line).to_owned())),
        }
        goes_on = part.is_some();
    }
    lines
}

/// What stands behind `#define RWF_WRITETHROUGH`.
fn definition(line: &str) -> Option<&str> {
    let line = line.trim_start().strip_prefix('#')?.trim_start();
    let rest = line.strip_prefix("define")?;
    let body = rest.trim_start().strip_prefix(NAME)?;
    // Another name may begin with this one.
    let ends = body.is_empty() || body.starts_with(|c: char| c.is_whitespace());
    (ends && rest.starts_with(|c: char| c.is_whitespace())).then(|| body.trim())
}

/// The number that an expression of a header stands for: numbers, `<<`, `|`, brackets, casts, `BIT()`.
fn value(text: &str) -> Result<u64> {
    let mut left = text;
    let value = or(&mut left, DEEP)?;
    if !left.trim().is_empty() {
        bail!("'{}' is left over", left.trim());
    }
    Ok(value)
}

fn or(left: &mut &str, deep: u32) -> Result<u64> {
    let mut value = shift(left, deep)?;
    while taken(left, "|") {
        value |= shift(left, deep)?;
    }
    Ok(value)
}

fn shift(left: &mut &str, deep: u32) -> Result<u64> {
    let mut value = one(left, deep)?;
    while taken(left, "<<") {
        let by = one(left, deep)?;
        let by = u32::try_from(by).ok().filter(|by| *by < 64);
        let by = by.context("it is shifted by more than 63")?;
        value <<= by;
    }
    Ok(value)
}

/// A number, something in brackets, or `BIT(...)`; a cast before it says nothing of the value.
fn one(left: &mut &str, deep: u32) -> Result<u64> {
    let Some(deep) = deep.checked_sub(1) else {
        bail!("it has too many brackets");
    };
    if taken(left, "(") {
        if is_cast(left) {
            let end = left.find(')').context("a bracket is not closed")?;
            *left = left.get(end + 1..).unwrap_or_default();
            return one(left, deep);
        }
        let value = or(left, deep)?;
        if !taken(left, ")") {
            bail!("a bracket is not closed");
        }
        return Ok(value);
    }
    let word = word(left);
    match word {
        "BIT" | "BIT_ULL" | "_BITUL" | "_BITULL" => {
            let bit = one(left, deep)?;
            let bit = u32::try_from(bit).ok().and_then(|b| 1u64.checked_shl(b));
            bit.context("there is no such bit")
        }
        "" => bail!("a number is missing"),
        word => number(word).with_context(|| format!("'{word}' is no number")),
    }
}

/// Whether what follows an open bracket is nothing but names: `__force __kernel_rwf_t)`.
fn is_cast(left: &str) -> bool {
    let Some((inside, _)) = left.split_once(')') else {
        return false;
    };
    let name = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    !inside.trim().is_empty() && inside.split_whitespace().all(name)
}

fn taken(left: &mut &str, what: &str) -> bool {
    match left.trim_start().strip_prefix(what) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

fn word<'a>(left: &mut &'a str) -> &'a str {
    let text = left.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    *left = rest;
    word
}

fn number(word: &str) -> Option<u64> {
    let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // from_str_radix takes a sign, C does not.
    (!digits.starts_with('+')).then(|| u64::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<u32> {
        flag(text).unwrap().map(|d| d.value)
    }

    #[test]
    fn the_ways_to_write_a_flag_are_read() {
        for body in [
            "((__force __kernel_rwf_t)0x00000200)",
            "((__force __kernel_rwf_t) 0x200)",
            "0x200",
            "0X200U",
            "512UL",
            "01000",
            "(1 << 9)",
            "(1U<<9)",
            "((__force __kernel_rwf_t)(1 << 9))",
            "((__kernel_rwf_t)_BITUL(9))",
            "BIT(9) /* comment */",
            "0x200 // comment",
            "\\\n\t0x200",
            "(0x200 | 0)",
        ] {
            let text = format!("#define RWF_WRITETHROUGH {body}\n");
            assert_eq!(of(&text), Some(0x200), "{body}");
        }
        assert_eq!(of("# define\tRWF_WRITETHROUGH\t0x100\n"), Some(0x100));
        assert_eq!(of("#define RWF_WRITETHROUGH 0x80000000"), Some(1 << 31));
    }

    #[test]
    fn what_only_looks_like_it_is_passed_over() {
        for text in [
            "",
            "#define RWF_ATOMIC 0x40\n",
            "#define RWF_WRITETHROUGH_OLD 0x80\n",
            "#define RWF_SUPPORTED (RWF_HIPRI | RWF_WRITETHROUGH)\n",
            "/* #define RWF_WRITETHROUGH 0x80 */\n",
            "// #define RWF_WRITETHROUGH 0x80\n",
            "/*\n#define RWF_WRITETHROUGH 0x80\n*/\n",
            "#defineRWF_WRITETHROUGH 0x80\n",
            "/* never closed #define RWF_WRITETHROUGH 0x80\n",
        ] {
            assert_eq!(flag(text).unwrap(), None, "{text}");
        }
        let both = "/* a */ // b /*\n#define RWF_WRITETHROUGH 0x80\n// */\n";
        let found = flag(both).unwrap().unwrap();
        assert_eq!((found.value, found.line), (0x80, 2));
        let text = "/* one\n * two\n */\n\n#define RWF_WRITETHROUGH 0x80";
        assert_eq!(flag(text).unwrap().unwrap().line, 5);
    }

    #[test]
    fn what_is_not_understood_is_told_and_not_guessed() {
        let said = |body: &str| {
            let text = format!("\n#define RWF_WRITETHROUGH {body}\n");
            format!("{:#}", flag(&text).unwrap_err())
        };
        assert!(said("(RWF_ATOMIC << 1)").contains("line 2"), "names");
        assert!(said("").contains("a number is missing"));
        assert!(said("0x300").contains("not one bit"));
        assert!(said("0").contains("not one bit"));
        assert!(said("(1ULL << 33)").contains("not one bit"));
        assert!(said("(1 << 64)").contains("more than 63"));
        assert!(said("BIT(64)").contains("no such bit"));
        assert!(said("(0x200").contains("not closed"));
        assert!(said("0x200 0x200").contains("left over"));
        assert!(said("0xzz").contains("no number"));
        assert!(said("09").contains("no number"));
        assert!(said(&"(".repeat(100_000)).contains("too many brackets"));
        assert!(said("(__force").contains("--flag"));
        let two = "#define RWF_WRITETHROUGH 1\n#define RWF_WRITETHROUGH 2\n";
        assert!(flag(two).unwrap_err().to_string().contains("lines 1 and 2"));
        let same = "#define RWF_WRITETHROUGH 2\n#define RWF_WRITETHROUGH 2\n";
        assert_eq!(of(same), Some(2));
    }
}
