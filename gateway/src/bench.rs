//! Bare packet rates of this machine, to set headgate's own beside: a generator and an echo on
//! AF_XDP rings, without anything in between.

use std::{net::SocketAddr, time::Duration};

use clap::Subcommand;
use headgate_ebpf::{OnDead, Protocol};
use serde::Serialize;

use crate::{
    port::{BATCH, Batch, Port},
    steer::{AttachMode, Steering},
    tally::{Fate, Tally},
    waker::Waker,
    worker::clock,
    xsk::{BindMode, QueueSpec, Xsk},
};

/// What can be measured.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Send UDP frames as fast as the NIC takes them
    Generate {
        /// The NIC to send through
        #[arg(long)]
        nic: String,
        /// Its queue
        #[arg(long, default_value_t = 0)]
        queue: u32,
        /// Bytes of a frame, without its checksum
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(60..=1514))]
        size: u16,
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// The station to send to
        #[arg(long, value_parser = mac)]
        mac: [u8; 6],
        /// Source address and port (IPv4)
        #[arg(long)]
        from: SocketAddr,
        /// Destination address and port (IPv4)
        #[arg(long)]
        to: SocketAddr,
    },
    /// Receive UDP frames, swap their addresses, send them back; or only receive
    Echo {
        /// The NIC
        #[arg(long)]
        nic: String,
        /// Its queue
        #[arg(long, default_value_t = 0)]
        queue: u32,
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// The address and port that frames are taken of (IPv4)
        #[arg(long)]
        address: SocketAddr,
        /// Only receive
        #[arg(long)]
        sink: bool,
    },
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Rates {
    received: u64,
    transmitted: u64,
    seconds: f64,
    received_mpps: f64,
    transmitted_mpps: f64,
}

type Failure = Box<dyn std::error::Error>;

impl Bench {
    /// Measures, and gives the result as JSON.
    ///
    /// # Errors
    /// When the NIC cannot be had.
    pub fn run(self) -> Result<String, Failure> {
        let result = match self {
            Self::Generate { nic, queue, size, seconds, mac, from, to } => {
                generate(&nic, queue, &frame(size, mac, from, to)?, seconds)?
            }
            Self::Echo { nic, queue, seconds, address, sink } => {
                echo(&nic, queue, address, seconds, sink)?
            }
        };
        Ok(serde_json::to_string(&result)?)
    }
}

fn generate(nic: &str, queue: u32, frame: &[u8], seconds: u64) -> Result<Rates, Failure> {
    let mut port = open(nic, queue)?;
    let mut tally = Tally::default();
    let start = clock();
    while clock() < start + Duration::from_secs(seconds) {
        // A ring's worth in flight at most: more would only wait in the backlog.
        while port.census().sending < 1024 {
            let Some(mut new) = port.allocate(frame.len()) else { break };
            port.bytes_mut(&mut new).copy_from_slice(frame);
            port.transmit(0, new);
            tally.transmitted += 1;
        }
        port.flush();
    }
    Ok(Rates::new(&tally, clock() - start))
}

fn echo(
    nic: &str,
    queue: u32,
    address: SocketAddr,
    seconds: u64,
    sink: bool,
) -> Result<Rates, Failure> {
    let ifindex = nix::net::if_::if_nametoindex(nic)?;
    let mut steering =
        Steering::attach(nic, ifindex, &[AttachMode::Native, AttachMode::Generic], 1)?;
    let mut port = open(nic, queue)?;
    for (_, queue, socket) in port.sockets() {
        steering.add_socket(queue, socket)?;
    }
    steering.add_service(Protocol::Udp, address, 0, OnDead::Pass)?;
    steering.pulse(queue)?.beat(clock().as_nanos() as u64);
    steering.enable(u64::MAX)?;
    let mut tally = Tally::default();
    let mut batch = Batch::with_capacity(BATCH);
    let start = clock();
    while clock() < start + Duration::from_secs(seconds) {
        port.receive(&mut batch);
        tally.received += batch.len() as u64;
        if batch.is_empty() {
            port.wait(Duration::from_millis(10));
        }
        for (nic, mut frame) in batch.drain(..) {
            if sink {
                port.recycle(frame.retire(Fate::Consumed, &mut tally));
                continue;
            }
            swap(port.bytes_mut(&mut frame));
            port.transmit(nic, frame);
            tally.transmitted += 1;
        }
        port.flush();
    }
    Ok(Rates::new(&tally, clock() - start))
}

fn open(nic: &str, queue: u32) -> Result<Xsk, Failure> {
    let spec = QueueSpec { nic: 0, name: nic.into(), queue, ring: 2048, frames: 8192 };
    let pause = || std::thread::park_timeout(Duration::from_millis(20));
    Ok(Xsk::bind(&[spec], BindMode::Copy, Waker::new()?, 50, pause)?)
}

impl Rates {
    fn new(tally: &Tally, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        let mpps = |count: u64| count as f64 / seconds / 1e6;
        Self {
            received: tally.received,
            transmitted: tally.transmitted,
            seconds,
            received_mpps: mpps(tally.received),
            transmitted_mpps: mpps(tally.transmitted),
        }
    }
}

/// Swaps stations, addresses and ports: no checksum changes by that.
fn swap(frame: &mut [u8]) {
    let Some(headers) = frame.first_chunk_mut::<38>() else { return };
    let old = *headers;
    headers[..6].copy_from_slice(&old[6..12]);
    headers[6..12].copy_from_slice(&old[..6]);
    headers[26..30].copy_from_slice(&old[30..34]);
    headers[30..34].copy_from_slice(&old[26..30]);
    headers[34..36].copy_from_slice(&old[36..38]);
    headers[36..38].copy_from_slice(&old[34..36]);
}

/// An Ethernet frame with IPv4 and UDP, all checksums right.
fn frame(size: u16, mac: [u8; 6], from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>, Failure> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        return Err("--from and --to are IPv4 addresses with ports".into());
    };
    let payload = vec![0; size as usize - 42];
    let mut frame = Vec::with_capacity(size as usize);
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac)
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut frame, &payload)?;
    Ok(frame)
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let octets: Option<Vec<u8>> =
        text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets
        .and_then(|octets| octets.try_into().ok())
        .ok_or_else(|| format!("{text} is no MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapping_keeps_the_checksums_right() {
        let from = "192.0.2.1:1000".parse().unwrap();
        let to = "192.0.2.2:2000".parse().unwrap();
        let mut there = frame(60, [2, 0, 0, 0, 0, 1], from, to).unwrap();
        let back = frame(60, [2, 0, 0, 0, 0, 1], to, from).unwrap();
        swap(&mut there);
        assert_eq!(there, back);
        assert_eq!(there.len(), 60);
        swap(&mut there[..20]);
    }

    #[test]
    fn mac_addresses_are_parsed() {
        assert_eq!(mac("02:00:0a:ff:00:01"), Ok([2, 0, 10, 255, 0, 1]));
        assert!(mac("02:00:0a").is_err());
        assert!(mac("02:00:0a:ff:00:1ff").is_err());
    }
}
