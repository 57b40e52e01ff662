// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a boot. PID 1 must not return: the kernel would panic.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use wtblk_shared::exit;

use crate::{console, sys};

/// Ends the machine with this byte, without a sync: what a test wanted on the
/// disk is there already, and a sync may hang on what a defect left behind.
pub fn finish(code: u8) -> ! {
    console::drain();
    if let Ok(ports) = File::options().write(true).open("/dev/port") {
        let _ = ports.write_at(&[code], exit::PORT);
        // QEMU stops the machine a moment after the write; what is below is for
        // machines where nothing listens at the port.
        std::thread::sleep(Duration::from_millis(500));
    }
    // No isa-debug-exit here: the harness learns the outcome from the console.
    console::diagnostic(&format!("wtblk-guest exit {code}"));
    console::drain();
    sys::restart();
    sys::wait_for_ever()
}

/// The guest cannot run its tests at all.
pub fn could_not_run(why: &str) -> ! {
    console::diagnostic(&format!("wtblk-guest could not run: {why}"));
    console::line(&format!("Bail out! {why}"));
    finish(exit::COULD_NOT_RUN)
}

/// A panic in any thread is a broken guest, not a test's result.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        console::diagnostic(&format!("wtblk-guest broken: {info}"));
        finish(exit::BROKEN)
    }));
}
