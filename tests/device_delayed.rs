// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that are on their way to being kept when something happens: what is
//! released, or stopped, while it is still delayed is not kept afterwards, and a
//! group does not wait for it.

mod common;

use common::driver::*;
use common::inside::Inside;
use common::serve::Serve;
use common::until;
use wtblk::control::Line;
use wtblk::control::client::Client;
use wtblk::fault::request::{OrderBy, OrderSlot, Plan, Request};
use wtblk::trace::event::DeviceKind;

/// Long beside everything that happens meanwhile.
const DELAY: &str = "700ms";

fn scenario(action: &str, op: &str) -> String {
    format!(
        r#"
        version = 1
        [[fault]]
        name = "late"
        when = {{ op = "{op}", lba = "3000+2000" }}
        action = {{ delay = "{DELAY}", {action} }}
        "#
    )
}

fn start(action: &str, op: &str) -> (Serve, Driver, Driver) {
    let serve = Serve::start(&scenario(action, op), &[]);
    let data = Driver::connect(serve.data(), 1);
    let mark = Driver::connect(serve.mark(), 1);
    (serve, data, mark)
}

/// The state page while one request is delayed: it is in flight, and not held.
fn assert_delayed(mark: &mut Driver) {
    assert_eq!(mark.mark("note text=look"), 0);
    let state = mark.state();
    assert!(state.contains("held=0 inflight=1"), "{state}");
}

#[test]
fn a_release_counts_for_who_is_still_delayed() {
    for action in [
        "hold = true",
        "order = { group = 3, permutation = \"reverse\" }",
    ] {
        for (op, kind) in [("write", OUT), ("read", IN)] {
            for order in ["release rule=late", "release"] {
                let (serve, mut data, mut mark) = start(action, op);
                let head = data.submit(0, 1, kind, 3000, 512);
                data.kick(0);
                assert_delayed(&mut mark);
                assert_eq!(mark.mark(order), 0);
                assert_eq!(data.finish(0, 1, head), 0, "{op} {action}");
                // Armed again, it holds again.
                assert_eq!(mark.mark("arm rule=late"), 0);
                let head = data.submit(0, 2, kind, 3001, 512);
                data.kick(0);
                assert_eq!(mark.mark("wait held=1"), 0);
                assert!(mark.state().contains("held=1 inflight=1 wait=ok"));
                assert!(!data.is_done(0, head));
                assert_eq!(mark.mark("release"), 0);
                assert_eq!(data.finish(0, 2, head), 0);
                drop((data, mark));
                serve.end().assert_paired();
            }
        }
    }
}

#[test]
fn an_event_that_lets_go_counts_for_who_is_still_delayed() {
    let (serve, mut data, mut mark) = start("hold = { until = { mark = \"go\" } }", "write");
    let head = data.submit(0, 1, OUT, 3000, 512);
    data.kick(0);
    assert_delayed(&mut mark);
    assert_eq!(mark.mark("note text=go"), 0);
    assert_eq!(data.finish(0, 1, head), 0);
    // It holds what comes later.
    let head = data.submit(0, 2, OUT, 3001, 512);
    data.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    assert!(mark.state().contains("held=1 inflight=1 wait=ok"));
    assert_eq!(mark.mark("note text=go"), 0);
    assert_eq!(data.finish(0, 2, head), 0);
    drop((data, mark));
    serve.end().assert_paired();
}

#[test]
fn a_group_does_not_wait_for_who_was_stopped_on_the_way_to_it() {
    for on_stop in ["complete", "abandon"] {
        for (op, kind) in [("write", OUT), ("read", IN)] {
            let rules = scenario("order = { group = 2, permutation = \"reverse\" }", op);
            let rules = format!("{rules}\n[device]\non_stop = \"{on_stop}\"\n");
            let serve = Serve::start(&rules, &[]);
            let mut data = Driver::connect(serve.data(), 1);
            let mut mark = Driver::connect(serve.mark(), 1);
            let first = data.submit(0, 1, kind, 3000, 512);
            data.kick(0);
            assert_delayed(&mut mark);
            let base = data.stop(0);
            assert_eq!(data.is_done(0, first), on_stop == "complete");
            data.start(0, base);
            data.queues[0].forget();
            // Group 0 has lost its first; the second goes alone.
            let head = data.submit(0, 2, kind, 3001, 512);
            data.kick(0);
            assert_eq!(data.finish(0, 2, head), 0, "{op} {on_stop}");
            drop((data, mark));
            serve.end().assert_paired();
        }
    }
}

#[test]
fn one_of_a_group_is_released_by_its_number() {
    let mut inside = Inside::start(1, vec![], false, |request: &Request| {
        let turn = u32::try_from(request.sector).ok()?;
        let order = OrderSlot {
            group: 0,
            size: 3,
            turn: OrderBy::Turn(turn),
            limit_ns: None,
        };
        Some(Plan {
            order: Some(order),
            ..Plan::default()
        })
    });
    let mut data = inside.data(1);
    let heads: Vec<_> = (0..2).map(|n| data.submit(0, n, OUT, n, 512)).collect();
    data.kick(0);
    let mut client = Client::connect(&inside.path("control")).unwrap();
    let held = until("two that wait", || {
        let requests = client.ask(&Line::of("query")).unwrap().1.requests.unwrap();
        (requests.iter().filter(|r| r.waits == "order").count() == 2).then_some(requests)
    });
    let mut one = Line::of("release");
    one.request = Some(held[0].request);
    assert_eq!(client.ask(&one).unwrap().1.released, Some(1));
    assert_eq!(data.finish(0, 0, heads[0]), 0);
    assert!(!data.is_done(0, heads[1]), "the other goes on to wait");
    // The third makes the group complete: of those who are left each has its turn.
    let third = data.submit(0, 2, OUT, 2, 512);
    data.kick(0);
    assert_eq!(data.finish(0, 1, heads[1]), 0);
    assert_eq!(data.finish(0, 2, third), 0);
    drop((client, data));
    let trace = inside.end();
    trace.assert_paired();
    let releases = trace.device(DeviceKind::Release);
    assert_eq!(releases, [(1, held[0].request, String::new())]);
}
