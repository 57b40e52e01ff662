// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a fault does to the device as a whole: gone, the power cut, the
//! connection closed. One state for all queues.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::connection::Stopper;

const WELL: u8 = 0;
const GONE: u8 = 1;
const CUT: u8 = 2;
const CLOSING_KEEP: u8 = 1;
const CLOSING_LOSE: u8 = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Outage {
    state: AtomicU8,
    /// The connection is being closed by a rule.
    closing: AtomicU8,
    connection: OnceLock<Arc<Stopper>>,
}

impl Outage {
    /// The connection that a rule may close.
    pub fn set_connection(&self, stopper: Arc<Stopper>) {
        let _ = self.connection.set(stopper);
    }

    /// Every request fails from now on. False where it was so, or worse, before.
    pub fn go(&self) -> bool {
        let swap = self
            .state
            .compare_exchange(WELL, GONE, Ordering::SeqCst, Ordering::SeqCst);
        swap.is_ok()
    }

    /// The power is cut. False where it was before.
    pub fn cut(&self) -> bool {
        self.state.swap(CUT, Ordering::SeqCst) != CUT
    }

    /// Closes the connection; false where that is under way.
    pub fn close(&self, lose: bool) -> bool {
        let how = if lose { CLOSING_LOSE } else { CLOSING_KEEP };
        let swap = self
            .closing
            .compare_exchange(0, how, Ordering::SeqCst, Ordering::SeqCst);
        if swap.is_ok()
            && let Some(connection) = self.connection.get()
        {
            connection.hang_up();
        }
        swap.is_ok()
    }

    /// The connection is closed, all its rings have stopped.
    pub fn closed(&self) {
        self.closing.store(0, Ordering::SeqCst);
    }

    pub fn is_gone(&self) -> bool {
        self.state.load(Ordering::Acquire) == GONE
    }

    pub fn is_cut(&self) -> bool {
        self.state.load(Ordering::Acquire) == CUT
    }

    /// Nothing completes any more: the power is cut, or what is in flight is being lost.
    pub fn is_silent(&self) -> bool {
        self.is_cut() || self.closing.load(Ordering::Acquire) == CLOSING_LOSE
    }

    /// The connection is being closed, and what is in flight is completed first.
    pub fn keeps(&self) -> bool {
        self.closing.load(Ordering::Acquire) == CLOSING_KEEP
    }

    /// In a word, for the state page.
    pub fn word(&self) -> &'static str {
        match self.state.load(Ordering::Acquire) {
            WELL => "ok",
            GONE => "gone",
            _ => "cut",
        }
    }
}
