// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wrong scenarios and exactly what is said about each: `scenario_wrong.txt`
//! holds a file behind `>>>` (its line 1, `version = 1`, left out) and the answer behind `<<<`.
//! `UPDATE=1 cargo test --test scenario_wrong` writes the answers anew; read the diff.

use std::path::Path;

use wtblk::fault::Scenario;

fn answer(scenario: &str) -> String {
    match Scenario::parse("f", &format!("version = 1\n{scenario}")) {
        Ok(_) => "it is not wrong\n".to_owned(),
        Err(error) => format!("{error}\n"),
    }
}

#[test]
fn each_wrong_file_gets_its_answer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenario_wrong.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let cases: Vec<(&str, &str)> = text
        .split(">>>\n")
        .skip(1)
        .map(|case| case.split_once("<<<\n").unwrap())
        .collect();
    assert!(cases.len() >= 100, "{}", cases.len());
    if std::env::var_os("UPDATE").is_some() {
        let anew: String = cases
            .iter()
            .map(|(wrong, _)| format!(">>>\n{wrong}<<<\n{}", answer(wrong)))
            .collect();
        std::fs::write(&path, anew).unwrap();
        return;
    }
    for (wrong, expected) in cases {
        let found = answer(wrong);
        assert!(found.starts_with("f:"), "{wrong}{found}");
        assert_eq!(found, expected, "{wrong}");
    }
}
