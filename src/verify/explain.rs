// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify --explain PROMISE`: a promise in words.

use super::contract::Contract;
use super::promise::About;
use super::render::wrap;

/// What the promise means, where it comes from, how it is broken, when it is not checked.
pub fn explain(about: &About) -> Vec<String> {
    let mut lines = vec![about.name.to_owned()];
    for (label, text) in [
        ("promised", about.promised),
        ("comes from", about.comes_from),
        ("judged on", about.judged_on),
        ("broken when", about.broken_when),
        ("broken by", about.broken_by),
        ("not checked when", about.not_checked_when),
    ] {
        lines.push(format!("  {label}"));
        lines.extend(wrap(text, "      "));
    }
    let (made, not): (Vec<&str>, Vec<&str>) = Contract::NAMES
        .iter()
        .partition(|name| Contract::named(name).is_some_and(|c| c.makes(about.name)));
    lines.push("  contracts".into());
    lines.extend(wrap(&format!("made by {}", made.join(", ")), "      "));
    if !not.is_empty() {
        lines.extend(wrap(&format!("not made by {}", not.join(", ")), "      "));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::promise;
    use super::*;

    #[test]
    fn every_promise_has_all_of_its_words() {
        for about in promise::ABOUT {
            let text = explain(about).join("\n");
            for words in [
                about.promised,
                about.comes_from,
                about.judged_on,
                about.broken_when,
                about.broken_by,
                about.not_checked_when,
            ] {
                assert!(words.len() > 30, "{}: {words:?}", about.name);
                let first = words.split_whitespace().next().unwrap();
                assert!(text.contains(first), "{text}");
            }
            let page = include_str!("../../docs/promises.md");
            let title = format!("### {}\n", about.name);
            assert!(
                page.contains(&title),
                "{} is not in docs/promises.md",
                about.name
            );
        }
    }

    /// A defect that the words name can be switched on.
    #[test]
    fn defects_that_are_named_exist() {
        let table = include_str!("../../kernel-config/defects.toml");
        for about in promise::ABOUT {
            let (_, after) = about
                .broken_by
                .split_once("the defect ")
                .unwrap_or_default();
            let name = after
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .next();
            if let Some(name) = name.filter(|n| !n.is_empty()) {
                let line = format!("name = \"{name}\"");
                assert!(table.contains(&line), "{}: {name}", about.name);
            }
        }
    }
}
