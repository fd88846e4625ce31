//! Origins that misbehave: the client gets the honest equivalent, a counter knows the reason, and a
//! line of the log tells it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use xtask::lab::address::{ORIGIN_ABSENT_V4, origin4, origin6, vip4, vip6};
use xtask::lab::{
    Behaviour, GatewayConfig, Headgate, Lab, LabConfig, Origin, ServiceConfig, Transfer, pattern,
};

/// curl's exit codes, curl(1).
const CUT_SHORT: i32 = 18;
const OUT_OF_TIME: i32 = 28;
const NO_ANSWER: i32 = 52;
const RESET: i32 = 56;

/// A service at the first VIP, port 80, whose origin is `origin`.
fn through(lab: &Lab, origin: SocketAddr) -> Headgate {
    let service = ServiceConfig::new("web", SocketAddr::new(vip4(0), 80), origin);
    gateway(lab, vec![service])
}

fn gateway(lab: &Lab, services: Vec<ServiceConfig>) -> Headgate {
    let mut config = GatewayConfig::new(lab.queues(), services);
    config.extra = "[tcp]\nhandshake = \"2s\"\nidle = \"8s\"\n".to_owned();
    lab.headgate(&config.render()).unwrap()
}

fn get(lab: &Lab, path: &str) -> Transfer {
    let url = format!("http://{}{path}", SocketAddr::new(vip4(0), 80));
    Transfer::get(lab.client(), &url, Duration::from_secs(20)).unwrap()
}

/// One of the events has been counted, the log names the origin, and nothing is left over.
fn reason_is_told(headgate: &Headgate, events: &[&str], origin: SocketAddr) {
    let told = || events.iter().any(|event| headgate.event(event).unwrap() > 0).then_some(());
    let counted = xtask::process::wait_for(Duration::from_secs(2), told);
    assert!(counted.is_some(), "no {events:?} in {}", headgate.status().unwrap());
    headgate.settle(Duration::from_secs(20)).unwrap();
    let log = headgate.log();
    assert!(log.contains(&origin.to_string()) || log.contains("web"), "silent log:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_is_down_resets_the_client() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let origin = SocketAddr::new(ORIGIN_ABSENT_V4, 80);
    let headgate = through(&lab, origin);
    let transfer = get(&lab, "/");
    assert_eq!(transfer.exit, RESET, "{transfer:?}");
    let events = ["origin-no-neighbour", "origin-unanswered", "origin-exhausted"];
    reason_is_told(&headgate, &events, origin);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_drops_every_syn_resets_the_client_after_the_handshake_limit() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let origin = SocketAddr::new(ORIGIN_ABSENT_V4, 80);
    // Frames leave for a station that nobody has.
    let neighbour = ORIGIN_ABSENT_V4.to_string();
    let entry = ["neigh", "add", &neighbour, "lladdr", "02:00:00:00:00:99", "dev", "go"];
    xtask::process::output(lab.gateway().command("ip").args(entry)).unwrap();
    let headgate = through(&lab, origin);
    let transfer = get(&lab, "/");
    assert_eq!(transfer.exit, RESET, "{transfer:?}");
    reason_is_told(&headgate, &["origin-unanswered"], origin);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_refuses_resets_the_client() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let origin = SocketAddr::new(origin4(0), 4444);
    let headgate = through(&lab, origin);
    let transfer = get(&lab, "/");
    assert_eq!(transfer.exit, RESET, "{transfer:?}");
    reason_is_told(&headgate, &["origin-refused"], origin);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_resets_midway_resets_the_client() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = SocketAddr::new(origin4(0), 8000);
    let _origin = Origin::start(lab.origin(), &[at], Behaviour::ResetAfter(200_000)).unwrap();
    let headgate = through(&lab, at);
    let transfer = get(&lab, "/bytes/1000000");
    assert_eq!(transfer.exit, RESET, "{transfer:?}");
    assert!(transfer.length <= 200_000, "{transfer:?}");
    reason_is_told(&headgate, &["origin-reset"], at);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_resets_at_once_resets_the_client() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = SocketAddr::new(origin4(0), 8000);
    let _origin = Origin::start(lab.origin(), &[at], Behaviour::ResetAtOnce).unwrap();
    let headgate = through(&lab, at);
    let transfer = get(&lab, "/");
    assert_eq!(transfer.exit, RESET, "{transfer:?}");
    reason_is_told(&headgate, &["origin-reset", "origin-refused"], at);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_closes_early_closes_the_client_after_what_it_sent() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = SocketAddr::new(origin4(0), 8000);
    let _origin = Origin::start(lab.origin(), &[at], Behaviour::CloseAfter(700_001)).unwrap();
    let headgate = through(&lab, at);
    let transfer = get(&lab, "/bytes/1000000?seed=5");
    assert_eq!(transfer.exit, CUT_SHORT, "{transfer:?}");
    assert_eq!(transfer.length, 700_001);
    assert_eq!(transfer.sha256, pattern::sha256(700_001, 5));
    headgate.settle(Duration::from_secs(20)).unwrap();
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_closes_at_once_closes_the_client() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = SocketAddr::new(origin4(0), 8000);
    let _origin = Origin::start(lab.origin(), &[at], Behaviour::CloseAtOnce).unwrap();
    let headgate = through(&lab, at);
    let transfer = get(&lab, "/");
    // A close with the request unread is a reset (RFC 1122, 4.2.2.13): the race is the origin's.
    assert!([NO_ANSWER, RESET].contains(&transfer.exit), "{transfer:?}");
    headgate.settle(Duration::from_secs(20)).unwrap();
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_origin_that_never_answers_keeps_the_client_waiting_until_the_idle_limit() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = SocketAddr::new(origin4(0), 8000);
    let origin = Origin::start(lab.origin(), &[at], Behaviour::Silent).unwrap();
    let headgate = through(&lab, at);
    let url = format!("http://{}/", SocketAddr::new(vip4(0), 80));
    let impatient = Transfer::get(lab.client(), &url, Duration::from_secs(2)).unwrap();
    assert_eq!(impatient.exit, OUT_OF_TIME, "{impatient:?}");
    assert_eq!(origin.accepted(), 1);
    let patient = get(&lab, "/");
    assert!([NO_ANSWER, RESET].contains(&patient.exit), "{patient:?}");
    reason_is_told(&headgate, &["client-timeout", "origin-timeout"], at);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn the_next_address_of_an_origin_serves_when_the_first_refuses() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let good = SocketAddr::new(origin6(0), 8000);
    let bad = [SocketAddr::new(origin4(0), 4444), SocketAddr::new(ORIGIN_ABSENT_V4, 8000)];
    let _origin = Origin::start(lab.origin(), &[good], Behaviour::Serve).unwrap();
    let mut service = ServiceConfig::new("web", SocketAddr::new(vip4(0), 80), good);
    service.listen.push(SocketAddr::new(vip6(0), 80));
    service.origin = vec![bad[0], bad[1], good];
    let headgate = gateway(&lab, vec![service]);
    for seed in 0..6 {
        let transfer = get(&lab, &format!("/bytes/1000?seed={seed}")).success();
        let transfer = transfer.unwrap_or_else(|error| panic!("{error}\n{}", headgate.log()));
        assert_eq!(transfer.sha256, pattern::sha256(1000, seed));
    }
    headgate.settle(Duration::from_secs(20)).unwrap();
}
