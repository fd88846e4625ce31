//! One, two and four queues, and flows whose packets do not stay on one of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use xtask::lab::address::{origin4, origin6, vip4, vip6};
use xtask::lab::{
    Behaviour, GatewayConfig, Lab, LabConfig, Namespace, Origin, Service, ServiceConfig, Transfer,
    pattern,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn every_number_of_queues_serves_and_every_worker_works() {
    for queues in [1, 2, 4] {
        let lab = Lab::new(&LabConfig { queues, ..LabConfig::default() }).unwrap();
        let (_origin, services) = origin(&lab);
        let mut headgate = lab.headgate(&GatewayConfig::new(queues, services).render()).unwrap();
        let faults = transfers(&lab, 80);
        assert!(faults.is_empty(), "{queues} queues: {faults:#?}\n{}", headgate.log());
        let status = headgate.settle(Duration::from_secs(20)).unwrap();
        let received: Vec<u64> = workers(&status, "received");
        assert_eq!(received.len(), queues as usize, "{status}");
        assert!(received.iter().all(|count| *count > 0), "a worker had nothing to do: {status}");
        headgate.stop(Duration::from_secs(15)).unwrap();
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_flow_whose_packets_hop_between_queues_keeps_working() {
    for queues in [2, 4] {
        let lab = Lab::new(&LabConfig { queues, ..LabConfig::default() }).unwrap();
        let (_origin, services) = origin(&lab);
        let mut headgate = lab.headgate(&GatewayConfig::new(queues, services).render()).unwrap();
        let _hopping =
            [hop(&lab, lab.client(), "c0", queues), hop(&lab, lab.origin(), "o0", queues)];
        for listen in [vip4(0), vip6(0)] {
            // One connection, many requests: each is sent with nothing in flight, which is when the
            // kernel looks for a queue anew.
            let url = format!("http://{}/bytes/20000?seed=[1-300]", SocketAddr::new(listen, 80));
            let got = Transfer::with(lab.client(), &["--no-globoff"], &url, PATIENCE).unwrap();
            let got = got.success().unwrap_or_else(|error| panic!("{error}\n{}", headgate.log()));
            assert_eq!(got.length, 300 * 20_000);
        }
        let faults = transfers(&lab, 40);
        assert!(faults.is_empty(), "{queues} queues: {faults:#?}\n{}", headgate.log());
        let status = headgate.settle(Duration::from_secs(20)).unwrap();
        let (handed, taken) = (headgate.event("handed-over"), headgate.event("taken-over"));
        assert!(handed.unwrap() > 100, "the packets did not hop: {status}");
        assert!(taken.unwrap() > 100, "what was handed over was not taken: {status}");
        headgate.stop(Duration::from_secs(15)).unwrap();
    }
}

/// An origin of both families, and a service of both.
fn origin(lab: &Lab) -> (Origin, Vec<ServiceConfig>) {
    let at = [SocketAddr::new(origin4(0), 8000), SocketAddr::new(origin6(0), 8000)];
    let origin = Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap();
    let mut service = ServiceConfig::new("web", SocketAddr::new(vip4(0), 80), at[0]);
    service.listen.push(SocketAddr::new(vip6(0), 80));
    service.origin.push(at[1]);
    (origin, vec![service])
}

/// Downloads at the same time over both families; returns what went wrong.
fn transfers(lab: &Lab, count: u64) -> Vec<String> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|seed| {
                scope.spawn(move || {
                    let listen = if seed % 2 == 0 { vip4(0) } else { vip6(0) };
                    let (at, length) = (SocketAddr::new(listen, 80), seed * 10_007);
                    let url = format!("http://{at}/bytes/{length}?seed={seed}");
                    let got = Transfer::get(lab.client(), &url, PATIENCE)?.success()?;
                    anyhow::ensure!(got.sha256 == pattern::sha256(length, seed), "wrong bytes");
                    Ok(())
                })
            })
            .collect();
        running
            .into_iter()
            .filter_map(|transfer| transfer.join().unwrap().err())
            .map(|error: anyhow::Error| format!("{error:#}"))
            .collect()
    })
}

/// Moves everything that `nic` sends from one transmit queue to the next, about 200 times a second:
/// the peer receives it on the queue of that number.
fn hop(lab: &Lab, namespace: &Namespace, nic: &str, queues: u32) -> Service {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let all = format!("{:x}", (1_u64 << cpus.min(32)) - 1);
    let script = format!(
        "cd /sys/class/net/{nic}/queues || exit 1
         while :; do for on in $(seq 0 $(({queues} - 1))); do
           for q in $(seq 0 $(({queues} - 1))); do
             if [ $q = $on ]; then echo {all}; else echo 0; fi > tx-$q/xps_cpus
           done
           sleep 0.005
         done; done"
    );
    lab.spawn(namespace, "sh", &["-c", &script]).unwrap()
}

fn workers(status: &Value, figure: &str) -> Vec<u64> {
    let workers = status["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker[figure].as_u64().unwrap()).collect()
}
