// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Actions as a scenario file says them, from the text to the disk: each with
//! its settings of the device, such as the cache that a cut needs.

mod common;

use common::driver::*;
use common::serve::Serve;
use common::until;

fn rule(name: &str, when: &str, action: &str) -> String {
    format!(
        "[[fault]]\nname = \"{name}\"\nwhen = {{ {when} }}\naction = {{ {action} }}\ntimes = 1\n"
    )
}

fn start(rules: &[String]) -> (Serve, Driver, Driver) {
    let text = format!("version = 1\n{}", rules.concat());
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_in(dir, &text, &["--image", "image", "--size", "16MiB"]);
    let data = Driver::connect(serve.data(), 1);
    let mark = Driver::connect(serve.mark(), 1);
    (serve, data, mark)
}

fn flush(d: &mut Driver) -> u8 {
    let head = d.submit(0, 7, FLUSH, 0, 0);
    d.kick(0);
    d.finish(0, 7, head)
}

#[test]
fn a_dropped_flush_and_a_power_cut() {
    let (serve, mut d, mut mark) = start(&[
        rule("lie", "op = \"flush\"", "drop_flush = true"),
        rule("cut", "op = \"write\", lba = \"1000+8\"", "cut = true"),
    ]);
    assert_eq!(d.write(0, &[1; 512]), 0);
    assert_eq!(flush(&mut d), 0);
    assert_eq!(d.write(8, &[2; 512]), 0);
    d.submit(0, 1, OUT, 1000, 512);
    d.kick(0);
    until("the cut", || {
        mark.state().contains(" device=cut ").then_some(())
    });
    let image = serve.path("image");
    assert_eq!(std::fs::read(image).unwrap(), vec![0; 16 << 20]);
    drop((d, mark));
    serve.end().assert_paired();
}

#[test]
fn a_flush_that_is_done_survives_the_cut() {
    let (serve, mut d, mut mark) = start(&[rule("cut", "op = \"read\"", "cut = true")]);
    assert_eq!(d.write(0, &[1; 512]), 0);
    assert_eq!(flush(&mut d), 0);
    assert_eq!(d.write(0, &[2; 512]), 0);
    d.submit(0, 1, IN, 0, 512);
    d.kick(0);
    until("the cut", || {
        mark.state().contains(" device=cut ").then_some(())
    });
    drop((d, mark));
    let path = serve.path("image");
    assert_eq!(std::fs::read(path).unwrap()[..512], [1; 512]);
    serve.end().assert_paired();
}

#[test]
fn states_are_moved_and_waited_for() {
    use wtblk::control::Line;
    use wtblk::control::client::Client;
    let text = r#"
version = 1
[[fault]]
name = "first"
when = { op = "write" }
action = { hold = true }
goto = "second"
[[fault]]
name = "later"
when = { op = "read", state = "third" }
action = { status = "ioerr" }
"#;
    let serve = Serve::start(text, &["--control", "control"]);
    let mut d = Driver::connect(serve.data(), 1);
    let path = serve.path("control");
    let mut ctl = until("a control socket", || Client::connect(&path).ok());
    let head = d.submit(0, 0, OUT, 0, 512);
    d.kick(0);
    let mut wait = Line::of("wait");
    (wait.rule, wait.fired) = (Some("first".into()), Some(1));
    assert_eq!(ctl.ask(&wait).unwrap().1.reached, Some(true));
    let mut wait = Line::of("wait");
    wait.state = Some("second".into());
    assert_eq!(ctl.ask(&wait).unwrap().1.reached, Some(true));
    assert_eq!(ctl.ask(&Line::of("release")).unwrap().1.released, Some(1));
    assert_eq!(d.finish(0, 0, head), 0);
    assert_eq!(d.read(0, 512).0, 0);
    let mut set = Line::of("set-state");
    set.state = Some("third".into());
    assert!(ctl.ask(&set).unwrap().1.ok);
    assert_eq!(d.read(0, 512).0, 1);
    set.state = Some("nowhere".into());
    assert!(!ctl.ask(&set).unwrap().1.ok);
}
