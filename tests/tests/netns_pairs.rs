//! A client through the gateway to an origin, over each pair of address families: everything that
//! is sent arrives, whole and from the pool.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use xtask::lab::address::{in_pool, origin4, origin6};
use xtask::lab::{
    Behaviour, GatewayConfig, Lab, LabConfig, NginxConfig, Origin, ServiceConfig, Transfer,
    four_pairs, pattern,
};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn two_hundred_transfers_at_once_over_each_pair_arrive_whole() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let at = [SocketAddr::new(origin4(0), 8000), SocketAddr::new(origin6(0), 8000)];
    let origin = Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap();
    let services = four_pairs(8000);
    let mut headgate = lab.headgate(&GatewayConfig::new(2, services.clone()).render()).unwrap();
    let uploads = uploads(&lab, 100);
    let downloads: Vec<(u64, u64)> = (0..100).map(|n| (size(1000 + n), n)).collect();

    for service in &services {
        let faults = at_once(&lab, service, &uploads, &downloads);
        let status = headgate.status().unwrap();
        let log = headgate.log();
        assert!(faults.is_empty(), "{}: {faults:#?}\n{log}\n{status:#}", service.name);
    }
    let strangers: Vec<SocketAddr> =
        origin.peers().into_iter().filter(|peer| !in_pool(peer.ip())).collect();
    assert_eq!(origin.accepted(), 4 * 200);
    assert!(strangers.is_empty(), "the origin saw {strangers:?}");
    headgate.settle(Duration::from_secs(20)).unwrap();
    headgate.stop(Duration::from_secs(15)).unwrap();
    assert!(!headgate.log().contains("panicked"), "{}", headgate.log());
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn the_origin_learns_the_client_by_the_proxy_protocol() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let nginx = lab.nginx(&NginxConfig::default()).unwrap();
    let mut services = four_pairs(NginxConfig::default().proxy_protocol_port);
    services.iter_mut().for_each(|service| service.proxy_protocol = true);
    let headgate = lab.headgate(&GatewayConfig::new(2, services.clone()).render()).unwrap();

    for service in &services {
        let uri = format!("/small?{}", service.name);
        let url = format!("http://{}{uri}", service.listen[0]);
        let transfer = Transfer::get(lab.client(), &url, PATIENCE).unwrap().success().unwrap();
        let line = nginx.logged(&uri).unwrap();
        let client = transfer.local.unwrap();
        assert_eq!(line.proxied_for, Some((client.ip(), client.port())), "{}", service.name);
        assert!(in_pool(line.remote), "{}: the origin saw {}", service.name, line.remote);
    }
    headgate.settle(Duration::from_secs(20)).unwrap();
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn without_xdp_the_same_binary_serves_by_packet_sockets() {
    let lab = Lab::new(&LabConfig { queues: 1, ..LabConfig::default() }).unwrap();
    let at = [SocketAddr::new(origin4(0), 8000), SocketAddr::new(origin6(0), 8000)];
    let _origin = Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap();
    let services = four_pairs(8000);
    let config = GatewayConfig::new(1, services.clone()).render();
    let mut headgate = lab.headgate_with(&config, &["--port", "packet"]).unwrap();
    let uploads = uploads(&lab, 5);

    for service in &services {
        let faults = at_once(&lab, service, &uploads, &[(0, 1), (1, 2), (3_000_000, 3)]);
        assert!(faults.is_empty(), "{}: {faults:#?}\n{}", service.name, headgate.log());
    }
    headgate.settle(Duration::from_secs(20)).unwrap();
    headgate.stop(Duration::from_secs(15)).unwrap();
}

/// Starts every upload and download at the same time; returns what went wrong.
fn at_once(
    lab: &Lab,
    service: &ServiceConfig,
    uploads: &[(PathBuf, String)],
    downloads: &[(u64, u64)],
) -> Vec<String> {
    let base = format!("http://{}", service.listen[0]);
    std::thread::scope(|scope| {
        let base = &base;
        let up = uploads.iter().map(|(file, hash)| {
            scope.spawn(move || {
                let url = format!("{base}/hash");
                let got = Transfer::put(lab.client(), file, &url, PATIENCE)?.success()?;
                anyhow::ensure!(got.beginning == *hash, "upload: {} for {hash}", got.beginning);
                Ok(())
            })
        });
        let down = downloads.iter().map(|(length, seed)| {
            scope.spawn(move || {
                let url = format!("{base}/bytes/{length}?seed={seed}");
                let got = Transfer::get(lab.client(), &url, PATIENCE)?.success()?;
                anyhow::ensure!(got.length == *length, "{} bytes of {length}", got.length);
                anyhow::ensure!(got.sha256 == pattern::sha256(*length, *seed), "wrong bytes");
                Ok(())
            })
        });
        let transfers: Vec<_> = up.chain(down).collect();
        transfers
            .into_iter()
            .filter_map(|transfer| transfer.join().unwrap().err())
            .map(|error: anyhow::Error| format!("{error:#}"))
            .collect()
    })
}

/// Files to upload, with their hashes.
fn uploads(lab: &Lab, count: u64) -> Vec<(PathBuf, String)> {
    (0..count)
        .map(|n| {
            let file = lab.directory().join(format!("upload-{n}"));
            pattern::write_file(&file, size(n), n).unwrap();
            (file, pattern::sha256(size(n), n))
        })
        .collect()
}

/// A length between 0 and 5 MB, the same for the same number; both ends of the range are among the
/// first, and so is a single byte.
fn size(number: u64) -> u64 {
    match number {
        0 => 0,
        1 => 1,
        2 => 5_000_000,
        _ => {
            let mut bytes = [0; 8];
            pattern::Pattern::new(number).fill(&mut bytes);
            u64::from_le_bytes(bytes) % 5_000_001
        }
    }
}
