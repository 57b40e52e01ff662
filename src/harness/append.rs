// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--append`: which words of the kernel command line are the user's to give. The last word on a
//! key counts, so one of ours that is given again would run something else than what is told.

use anyhow::{Result, bail};

/// What starts every word that our guest program reads.
const OURS: &str = "wtblk_";
/// Those that no option has, and that change nothing of what is told (`docs/guest-tests.md`).
const FREE: [&str; 6] = [
    "wtblk_probe_ms",
    "wtblk_test_ms",
    "wtblk_exerciser",
    "wtblk_hold",
    "wtblk_then",
    "wtblk_rounds",
];
/// Those that the harness gives, and what one says instead.
const INSTEAD: [(&str, &str); 9] = [
    ("wtblk_tests", "use --test NAME"),
    ("wtblk_flag", "use --flag VALUE"),
    ("wtblk_tags", "use --tags on|off"),
    ("wtblk_seed", "use --seed N"),
    ("wtblk_ops", "use --ops N"),
    ("wtblk_defect", "use --defect NAME"),
    ("wtblk_always_cow", "use --fs xfs-always-cow"),
    ("wtblk_realtime", "use --fs xfs-rt"),
    (
        "wtblk_list",
        "--test with any other name lists them, without a boot",
    ),
];

/// Refuses words that belong to the harness, each with what to do instead.
pub fn check(words: Option<&str>) -> Result<()> {
    for word in words.unwrap_or_default().split_whitespace() {
        let key = word.split('=').next().unwrap_or_default();
        if !key.starts_with(OURS) || FREE.contains(&key) {
            continue;
        }
        if key.starts_with("wtblk_sweep") {
            bail!("--append: '{word}' is wtblk's own word: use `wtblk sweep` and its options");
        }
        match INSTEAD.iter().find(|(ours, _)| *ours == key) {
            Some((_, instead)) => bail!("--append: '{word}' is wtblk's own word: {instead}"),
            None => bail!(
                "--append: the guest tests know no word '{key}' and would not start; those that can be appended are {}",
                FREE.join(", ")
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_harness_are_refused_with_what_to_do_instead() {
        for (words, why) in [
            ("wtblk_tests=dsync", "--test NAME"),
            ("quiet wtblk_flag=0x100", "--flag"),
            ("wtblk_tags=off", "--tags"),
            ("wtblk_seed=3", "--seed"),
            ("wtblk_ops=9", "--ops"),
            ("wtblk_defect=none", "--defect"),
            ("wtblk_list", "lists them"),
            ("wtblk_realtime", "xfs-rt"),
            ("wtblk_sweep=dsync", "wtblk sweep"),
            ("wtblk_sweep_from=0", "wtblk sweep"),
            ("wtblk_colour=red", "wtblk_probe_ms"),
        ] {
            let said = check(Some(words)).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("--append"), "{said}");
        }
    }

    #[test]
    fn the_users_words_are_his() {
        let fine =
            "quiet iomap.wt_defect=none wtblk_probe_ms=9 wtblk_exerciser=t0+4096 a=wtblk_list";
        assert!(check(Some(fine)).is_ok());
        assert!(check(None).is_ok());
    }
}
