// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plan in short words, for the trace: `delay 5.000 ms, hold, torn 0+2, IOERR`.

use std::fmt;

use super::request::{DataFault, DeviceFault, OrderBy, OrderSlot, Plan};

/// Pieces of a list that are written out.
const MAX_PIECES: usize = 4;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(ns) = self.delay_ns {
            parts.push(format!("delay {}", ms(ns)));
        }
        if let Some(hold) = &self.hold {
            parts.push(match hold.limit_ns {
                Some(ns) => format!("hold at most {}", ms(ns)),
                None => "hold".into(),
            });
        }
        if let Some(order) = &self.order {
            parts.push(order_text(order));
        }
        if self.hang {
            parts.push("hang".into());
        }
        if let Some(data) = &self.data {
            parts.push(data.to_string());
        }
        if let Some(status) = self.status {
            parts.push(status.to_string());
        }
        if self.store {
            parts.push("stored all the same".into());
        }
        if let Some(len) = self.used_len {
            parts.push(format!("used length {len}"));
        }
        if let Some(device) = self.device {
            parts.push(device.to_string());
        }
        if parts.is_empty() {
            parts.push("nothing".into());
        }
        f.write_str(&parts.join(", "))
    }
}

fn ms(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn order_text(order: &OrderSlot) -> String {
    let OrderSlot {
        group, size, turn, ..
    } = order;
    match turn {
        OrderBy::Turn(turn) => format!("turn {turn} of {size} in group {group}"),
        OrderBy::Offset(at) => format!("by offset {at} among {size} in group {group}"),
    }
}

impl fmt::Display for DataFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |list: Vec<String>| {
            let more = if list.len() > MAX_PIECES { " ..." } else { "" };
            format!("{}{more}", list[..list.len().min(MAX_PIECES)].join(" "))
        };
        match self {
            DataFault::Torn(kept) if kept.is_empty() => f.write_str("torn: nothing stored"),
            DataFault::Torn(kept) => {
                let list = kept.iter().map(|(at, n)| format!("{at}+{n}")).collect();
                write!(f, "torn: only {}", shown(list))
            }
            DataFault::Corrupt(bits) => {
                let list = bits
                    .iter()
                    .map(|(at, m)| format!("{at}^{m:#04x}"))
                    .collect();
                write!(f, "corrupt {}", shown(list))
            }
            DataFault::Dropped => f.write_str("dropped"),
            DataFault::Misdirected(to) => write!(f, "misdirected to {to}"),
            DataFault::Stale => f.write_str("stale"),
            DataFault::LateFlush(n) => write!(f, "flush without the last {n} writes"),
        }
    }
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceFault::Disconnect { lose: true } => "disconnect and lose what is in flight",
            DeviceFault::Disconnect { lose: false } => "disconnect",
            DeviceFault::Gone => "gone",
            DeviceFault::Cut => "cut",
        })
    }
}
