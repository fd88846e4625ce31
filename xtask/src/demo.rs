//! The demonstration: a real client, headgate, and nginx, over each pair of address families.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{
    GatewayConfig, Lab, LabConfig, Nginx, NginxConfig, ServiceConfig, Transfer, address,
    four_pairs, pattern,
};
use crate::{process, setup, table};

/// Runs the demonstration on `queues` queues. An error when anything is not as it should be.
pub fn run(queues: u32) -> Result<()> {
    setup::packages()?;
    build_headgate()?;
    let lab = Lab::new(&LabConfig { queues, ..LabConfig::default() })?;
    println!("demo: lab {} stands (client, gateway, origin; {queues} queues)", lab.name());
    let nginx = lab.nginx(&NginxConfig {
        files: vec![("10M".to_owned(), SIZE, DOWNLOAD_SEED)],
        ..NginxConfig::default()
    })?;
    pattern::write_file(&lab.directory().join("upload"), SIZE, UPLOAD_SEED)?;
    let services = four_pairs(80);
    let mut headgate = lab.headgate(&GatewayConfig::new(queues, services.clone()).render())?;
    println!("demo: headgate runs, pid {}\n", headgate.pid());
    println!("{}", headgate.status_text()?.trim_end());

    let visits: Vec<Visit> = services
        .iter()
        .map(|service| Visit::make(&lab, &nginx, service))
        .collect::<Result<_>>()
        .with_context(|| format!("headgate's log ends:\n{}", headgate.log()))?;
    println!(
        "\n{}",
        table::markdown(&Visit::HEADER, &visits.iter().map(Visit::row).collect::<Vec<_>>())
    );
    headgate.stop(Duration::from_secs(10))?;
    let faults: Vec<String> = visits.iter().flat_map(Visit::faults).collect();
    let name = lab.name().to_owned();
    drop((headgate, nginx, lab));
    ensure!(
        crate::lab::namespaces(&name).iter().all(|namespace| !namespace.exists()),
        "the lab's namespaces are still there"
    );
    if !faults.is_empty() {
        bail!("not as it should be:\n  {}", faults.join("\n  "));
    }
    println!("demo: all as it should be; headgate stopped, nothing left behind");
    Ok(())
}

/// Builds the release binary that labs run.
pub fn build_headgate() -> Result<()> {
    process::run(Command::new(env!("CARGO")).current_dir(crate::lab::workspace()).args([
        "build",
        "--release",
        "--package",
        "headgate",
    ]))
}

/// A page, a download and an upload through one service, as both ends saw them.
struct Visit {
    pair: String,
    asked: String,
    talked_to: String,
    client: String,
    origin_saw: Seen,
    upload_saw: Seen,
    origin: String,
    statuses: [u16; 3],
    download: String,
    upload: String,
}

/// Whom nginx saw, by its log.
struct Seen {
    address: IpAddr,
    port: u16,
}

impl Visit {
    const HEADER: [&'static str; 9] = [
        "pair",
        "client asked",
        "it talked to",
        "as",
        "origin saw, GET / PUT",
        "of the pool",
        "status",
        "10 MB down, SHA-256",
        "10 MB up, SHA-256",
    ];

    fn make(lab: &Lab, nginx: &Nginx, service: &ServiceConfig) -> Result<Visit> {
        let at = service.listen[0];
        let (small, file) = (format!("/small?{}", service.name), format!("/10M?{}", service.name));
        let stored = format!("{}.up", service.name);
        let target = format!("/upload/{stored}");
        let client = lab.client();

        let page = Transfer::get(client, &format!("http://{at}{small}"), PATIENCE)?;
        let down = Transfer::get(client, &format!("http://{at}{file}"), PATIENCE)?;
        let source = lab.directory().join("upload");
        let up = Transfer::put(client, &source, &format!("http://{at}{target}"), PATIENCE)?;
        for transfer in [&page, &down, &up] {
            transfer.clone().success().with_context(|| format!("over {}", service.name))?;
        }
        let (get, put) = (nginx.logged(&file)?, nginx.logged(&target)?);
        Ok(Visit {
            pair: service.name.replace('-', "→"),
            asked: format!("http://{at}"),
            talked_to: shown(down.remote),
            client: shown(down.local),
            origin_saw: Seen { address: get.remote, port: get.remote_port },
            upload_saw: Seen { address: put.remote, port: put.remote_port },
            origin: SocketAddr::new(get.server, get.server_port).to_string(),
            statuses: [page.status, down.status, up.status],
            download: down.sha256,
            upload: nginx.upload_sha256(&stored)?,
        })
    }

    fn row(&self) -> Vec<String> {
        let seen = |seen: &Seen| SocketAddr::new(seen.address, seen.port).to_string();
        let pool = [&self.origin_saw, &self.upload_saw].iter().all(|s| address::in_pool(s.address));
        let hash = |found: &str, seed| match found == pattern::sha256(SIZE, seed) {
            true => format!("{}… right", &found[..12]),
            false => format!("{}… WRONG", &found[..12]),
        };
        vec![
            self.pair.clone(),
            self.asked.clone(),
            self.talked_to.clone(),
            self.client.clone(),
            format!("{} / {} at {}", seen(&self.origin_saw), seen(&self.upload_saw), self.origin),
            if pool { "yes" } else { "NO" }.to_owned(),
            self.statuses.map(|status| status.to_string()).join(" "),
            hash(&self.download, DOWNLOAD_SEED),
            hash(&self.upload, UPLOAD_SEED),
        ]
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |right: bool, what: String| {
            if !right {
                faults.push(format!("{}: {what}", self.pair));
            }
        };
        expect(
            self.asked == format!("http://{}", self.talked_to),
            format!("the client asked {} and talked to {}", self.asked, self.talked_to),
        );
        for seen in [&self.origin_saw, &self.upload_saw] {
            let right = address::in_pool(seen.address) && (20000..=59999).contains(&seen.port);
            expect(right, format!("the origin saw {} port {}", seen.address, seen.port));
        }
        // nginx answers 201 to an upload of a new file.
        expect(self.statuses == [200, 200, 201], format!("statuses {:?}", self.statuses));
        expect(
            self.download == pattern::sha256(SIZE, DOWNLOAD_SEED),
            format!("the download's hash is {}", self.download),
        );
        expect(
            self.upload == pattern::sha256(SIZE, UPLOAD_SEED),
            format!("the upload's hash is {}", self.upload),
        );
        faults
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "nobody".to_owned(), |address| address.to_string())
}

const SIZE: u64 = 10 << 20;
const DOWNLOAD_SEED: u64 = 1;
const UPLOAD_SEED: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Visit {
        let seen = || Seen { address: address::pool4(3), port: 20001 };
        Visit {
            pair: "v4→v4".to_owned(),
            asked: "http://198.51.100.80:80".to_owned(),
            talked_to: "198.51.100.80:80".to_owned(),
            client: "198.51.100.2:4711".to_owned(),
            origin_saw: seen(),
            upload_saw: seen(),
            origin: "192.0.2.80:80".to_owned(),
            statuses: [200, 200, 201],
            download: pattern::sha256(SIZE, DOWNLOAD_SEED),
            upload: pattern::sha256(SIZE, UPLOAD_SEED),
        }
    }

    #[test]
    fn each_difference_is_a_fault() {
        assert_eq!(right().faults(), Vec::<String>::new());
        let wrong = [
            Visit { talked_to: "192.0.2.80:80".to_owned(), ..right() },
            Visit { origin_saw: Seen { address: address::CLIENT[0], port: 20001 }, ..right() },
            Visit { upload_saw: Seen { address: address::pool4(3), port: 80 }, ..right() },
            Visit { statuses: [200, 200, 502], ..right() },
            Visit { download: right().upload, ..right() },
            Visit { upload: right().download, ..right() },
        ];
        for visit in wrong {
            assert_eq!(visit.faults().len(), 1, "{:?}", visit.faults());
        }
    }
}
