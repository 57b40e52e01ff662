// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `wtblk` command; see `wtblk --help` and the README.

fn main() -> std::process::ExitCode {
    wtblk::cli::main()
}
