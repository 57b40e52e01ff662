// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sectors that nobody has written read as poison: to a raw client, over a
//! restart, and to a guest from which a write was stolen.

mod common;
mod support;

use std::os::unix::fs::MetadataExt;

use common::driver::*;
use common::serve::Serve;
use wtblk_shared::poison;

const ARGS: [&str; 5] = ["--image", "img", "--size", "16MiB", "--poison"];

fn poisoned(sector: u64, len: usize) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; len];
    poison::fill(sector, &mut bytes);
    (0, bytes)
}

#[test]
fn what_was_never_written_says_so_also_after_a_restart() {
    for layer in ["--poison", "--volatile-cache"] {
        let args = [&ARGS[..], &[layer][..usize::from(layer != "--poison")]].concat();
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &args);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.read(96, 8192), poisoned(96, 8192));
        assert_eq!(d.write(104, &[7; 4096]), 0);
        let (status, bytes) = d.read(103, 10 * 512);
        assert_eq!(status, 0);
        assert_eq!(bytes[..512], poisoned(103, 512).1);
        assert_eq!(bytes[512..9 * 512], [7; 4096]);
        assert_eq!(bytes[9 * 512..], poisoned(112, 512).1);
        // Zeros are zeros, and stay zeros.
        assert_eq!(d.zero(WRITE_ZEROES, &[(200, 8, 1), (304, 8, 0)]), 0);
        assert_eq!(d.zero(DISCARD, &[(400, 8, 0)]), 0);
        for sector in [200, 304, 400] {
            assert_eq!(d.read(sector, 4096), (0, vec![0; 4096]));
        }
        drop(d);
        // An orderly end writes the cache out.
        let path = serve.path("img");
        let mut serve = serve;
        serve.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(serve.wait(), 0);
        let used = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(used <= 64 << 10, "poison takes no room: {used}");
        let bytes = std::fs::read(&path).unwrap();
        assert!(poison::find(&bytes).is_none(), "nothing of it is stored");

        let serve = Serve::start_in(serve.leave(), "", &args);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.read(96, 4096), poisoned(96, 4096));
        assert_eq!(d.read(104, 4096), (0, vec![7; 4096]));
        for sector in [200, 304] {
            assert_eq!(d.read(sector, 4096), (0, vec![0; 4096]));
        }
        drop(d);
        serve.end();
    }
}

#[test]
fn what_a_power_cut_took_was_never_written() {
    let args = [&ARGS[..], &["--volatile-cache"]].concat();
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &args);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 4096]), 0);
    assert_eq!(d.read(8, 4096), (0, vec![7; 4096]));
    let dir = serve.kill();
    drop(d);
    let serve = Serve::start_in(dir, "", &args);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.read(8, 4096), poisoned(8, 4096));
    drop(d);
    serve.end();
}

#[test]
fn a_guest_that_reads_what_was_not_stored_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("stolen.toml");
    std::fs::write(
        &scenario,
        r#"
version = 1
[[fault]]
name = "stolen"
when = { op = "write", in_call = "data" }
test = "beyond-eof"
action = { drop = true }
"#,
    )
    .unwrap();
    let scenario = scenario.to_str().unwrap();
    let run = support::run(&["--test", "beyond-eof", "--scenario", scenario]);
    assert_eq!(run.status, 1, "{}", run.said());
    assert_eq!(
        run.verdict("beyond-eof", "guest"),
        "broken",
        "{}",
        run.said()
    );
    assert!(
        run.stdout.contains("never written since mkfs"),
        "{}",
        run.said()
    );
}
