//! The host that headgate runs on keeps its own network: ping, ARP and neighbour discovery, and its
//! services on other ports of the same addresses, whatever becomes of headgate.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xtask::lab::address::{
    GATEWAY_CLIENT_SIDE, GATEWAY_ORIGIN_SIDE, origin4, pool4, pool6, vip4, vip6,
};
use xtask::lab::{
    Behaviour, GatewayConfig, Headgate, Lab, LabConfig, Namespace, Origin, Transfer, four_pairs,
    pattern,
};
use xtask::process;

/// Port of the host's own service.
const OWN: u16 = 8080;
/// curl's exit codes, curl(1).
const NO_CONNECTION: i32 = 7;

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn the_host_stays_reachable_whatever_becomes_of_headgate() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _host = host_service(&lab);
    let _origin = origin(&lab);
    host_is_well(&lab, "before headgate");

    let mut headgate = start(&lab, "pass");
    host_is_well(&lab, "with headgate");
    served(&lab, "with headgate");

    headgate.pause().unwrap();
    // The heartbeat's limit is 500 ms: after that the host itself gets the packets, and refuses.
    let refused = || (proxied(&lab, 1).exit == NO_CONNECTION).then_some(());
    let passed = process::wait_for(Duration::from_secs(3), refused);
    assert!(passed.is_some(), "packets still go to a worker that hangs");
    host_is_well(&lab, "while headgate hangs");
    headgate.resume().unwrap();
    served(&lab, "after headgate went on");
    host_is_well(&lab, "after headgate went on");

    headgate.kill().unwrap();
    host_is_well(&lab, "after kill -9");
    assert_eq!(proxied(&lab, 2).exit, NO_CONNECTION, "somebody answers for a dead headgate");

    let mut headgate = start(&lab, "pass");
    served(&lab, "after a restart");
    host_is_well(&lab, "after a restart");
    headgate.settle(Duration::from_secs(20)).unwrap();
    headgate.stop(Duration::from_secs(15)).unwrap();
    host_is_well(&lab, "after headgate stopped");
    let links = process::output(lab.gateway().command("ip").args(["link", "show"])).unwrap();
    assert!(!links.contains("xdp"), "an XDP program is still attached:\n{links}");
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_service_that_drops_when_dead_is_served_again_after_headgate_hung() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _host = host_service(&lab);
    let _origin = origin(&lab);
    let mut headgate = start(&lab, "drop");
    served(&lab, "at first");
    headgate.pause().unwrap();
    std::thread::scope(|scope| {
        // Its SYNs are lost until headgate goes on; nobody refuses them meanwhile.
        let patient = scope.spawn(|| proxied(&lab, 15));
        process::wait_for(Duration::from_secs(2), || None::<()>);
        host_is_well(&lab, "while headgate hangs");
        headgate.resume().unwrap();
        patient.join().unwrap().success().unwrap();
    });
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_hundred_restarts_on_the_same_queues() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _origin = origin(&lab);
    for round in 0..100 {
        let mut headgate = start(&lab, "pass");
        proxied(&lab, 5).success().unwrap_or_else(|error| panic!("round {round}: {error}"));
        match round % 2 {
            0 => headgate.stop(Duration::from_secs(10)).unwrap(),
            _ => headgate.kill().unwrap(),
        }
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn stopping_finishes_what_is_under_way_and_takes_nothing_new() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _origin = origin(&lab);
    let mut config = GatewayConfig::new(lab.queues(), four_pairs(8000));
    config.drain = Duration::from_secs(20);
    let mut headgate = lab.headgate(&config.render()).unwrap();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let url = format!("http://{}/bytes/4000000?seed=9", SocketAddr::new(vip4(0), 80));
            let arguments = ["--limit-rate", "1M"];
            Transfer::with(lab.client(), &arguments, &url, Duration::from_secs(30)).unwrap()
        });
        let sessions = || {
            let status = headgate.status().ok()?;
            let workers = status["workers"].as_array()?;
            workers.iter().any(|worker| worker["sessions"] != 0).then_some(())
        };
        process::wait_for(Duration::from_secs(5), sessions).unwrap();
        headgate.stop(Duration::from_secs(25)).unwrap();
        let done = slow.join().unwrap().success().unwrap();
        assert_eq!(done.sha256, pattern::sha256(4_000_000, 9));
    });
    assert_eq!(proxied(&lab, 2).exit, NO_CONNECTION);
}

fn start(lab: &Lab, on_dead: &'static str) -> Headgate {
    let mut services = four_pairs(8000);
    services.iter_mut().for_each(|service| service.on_dead = on_dead);
    let mut config = GatewayConfig::new(lab.queues(), services);
    config.heartbeat_limit = Duration::from_millis(500);
    lab.headgate(&config.render()).unwrap()
}

fn origin(lab: &Lab) -> Origin {
    let at = [SocketAddr::new(origin4(0), 8000)];
    Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap()
}

/// A TCP service of the gateway's host, on its own addresses and on addresses that headgate serves
/// other ports of.
fn host_service(lab: &Lab) -> Origin {
    let at = own_addresses().map(|address| SocketAddr::new(address, OWN));
    Origin::start(lab.gateway(), &at, Behaviour::Serve).unwrap()
}

fn own_addresses() -> [IpAddr; 4] {
    [GATEWAY_CLIENT_SIDE[0], GATEWAY_CLIENT_SIDE[1], vip4(0), vip6(0)]
}

/// Asks for a neighbour anew, pings, and uses the host's own service, over both families and on both
/// links.
fn host_is_well(lab: &Lab, when: &str) {
    let towards_origin = [GATEWAY_ORIGIN_SIDE[0], GATEWAY_ORIGIN_SIDE[1], pool4(0), pool6(0)];
    for (namespace, nic, addresses) in
        [(lab.client(), "c0", own_addresses()), (lab.origin(), "o0", towards_origin)]
    {
        process::output(namespace.command("ip").args(["neigh", "flush", "dev", nic])).unwrap();
        for address in addresses {
            ping(namespace, address, when);
        }
    }
    for address in own_addresses() {
        let url = format!("http://{}/bytes/100000?seed=4", SocketAddr::new(address, OWN));
        let transfer = Transfer::get(lab.client(), &url, Duration::from_secs(10)).unwrap();
        let transfer = transfer.success().unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(transfer.sha256, pattern::sha256(100_000, 4), "{when}: {address}");
    }
}

fn ping(namespace: &Namespace, address: IpAddr, when: &str) {
    let address = address.to_string();
    process::output(namespace.command("ping").args(["-c2", "-i0.05", "-W2", &address]))
        .unwrap_or_else(|error| panic!("{when}: {error}"));
}

fn proxied(lab: &Lab, seconds: u64) -> Transfer {
    let url = format!("http://{}/bytes/1000?seed=3", SocketAddr::new(vip4(0), 80));
    Transfer::get(lab.client(), &url, Duration::from_secs(seconds)).unwrap()
}

fn served(lab: &Lab, when: &str) {
    let transfer = proxied(lab, 10).success().unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(transfer.sha256, pattern::sha256(1000, 3), "{when}");
}
