// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two lists of a configuration: which files it was made from, and what of a fragment it did not take.

/// The Kconfig files in a tree's list of them (`include/config/auto.conf.cmd`).
pub(super) fn kconfig_files(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .skip_while(|line| !line.starts_with("deps_config"))
        .skip(1)
        .map_while(|line| line.strip_prefix('\t'))
        .map(|line| line.trim_end_matches('\\').trim())
        .filter(|file| !file.is_empty())
}

/// Options of a fragment that a finished configuration does not have as asked.
pub fn missing_options(config: &str, fragment: &str) -> Vec<String> {
    let have: std::collections::HashMap<&str, &str> =
        config.lines().filter_map(|l| l.split_once('=')).collect();
    let mut missing = Vec::new();
    for line in fragment.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix("# ")
            .and_then(|l| l.strip_suffix(" is not set"))
        {
            if have.contains_key(name) {
                missing.push(line.to_owned());
            }
        } else if let Some((name, value)) =
            line.split_once('=').filter(|_| line.starts_with("CONFIG_"))
        {
            let found = have.get(name).copied().unwrap_or("n");
            if found != value {
                missing.push(line.to_owned());
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_take_are_named() {
        let config = "CONFIG_A=y\nCONFIG_T=20\n# CONFIG_B is not set\nCONFIG_D=y\n";
        let fragment = "# words\nCONFIG_A=y\nCONFIG_T=20\nCONFIG_B=y\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=n\n";
        assert_eq!(
            missing_options(config, fragment),
            ["CONFIG_B=y", "# CONFIG_D is not set"]
        );
    }

    #[test]
    fn the_trees_own_list_of_kconfig_files_is_read() {
        let list =
            "deps_config := \\\n\tarch/x86/Kconfig \\\n\tKconfig\n\n$(deps_config): ;\n\tother\n";
        assert_eq!(
            kconfig_files(list).collect::<Vec<_>>(),
            ["arch/x86/Kconfig", "Kconfig"]
        );
        assert_eq!(kconfig_files("").count(), 0);
    }
}
