//! Reads the tables that the kernel shows in /proc.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::pool::PortRange;

/// The listening sockets of `/proc/net/tcp` or `/proc/net/tcp6` (proc_pid_net(5)).
pub(super) fn listeners(table: &str) -> Vec<SocketAddr> {
    table.lines().filter_map(listener).collect()
}

/// `net.ipv4.ip_local_port_range`: two numbers.
pub(super) fn local_ports(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace();
    PortRange::new(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?)
}

/// `net.ipv4.ip_local_reserved_ports`: ports and ranges, with commas.
pub(super) fn reserved_ports(text: &str) -> Vec<PortRange> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        PortRange::new(first.parse().ok()?, last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace();
    let (local, state) = (fields.nth(1)?, fields.nth(1)?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    Some(SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?))
}

/// Words of 32 bits in hexadecimal, each as the host's byte order makes of four bytes on the wire.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(8 * index)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_read() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 020200C0:842A 507100CB:01BB 01 00000000:00000000 00:00000000 00000000     0
   2: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        assert_eq!(listeners(v4), ["0.0.0.0:2024", "127.0.0.1:25"].map(|a| a.parse().unwrap()));
        let v6 =
            "  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0
   1: B80D0120000000000000000080000000:0050 00000000000000000000000000000000:0000 0A 0
   2: 0000000000000000FFFF0000010200C0:0051 00000000000000000000000000000000:0000 0A 0";
        let expected = ["[::]:22", "[2001:db8::80]:80", "192.0.2.1:81"].map(|a| a.parse().unwrap());
        assert_eq!(listeners(v6), expected);
    }

    #[test]
    fn a_real_listener_is_found() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = std::net::TcpListener::bind(local) else { continue };
            let address = socket.local_addr().unwrap();
            let table = if address.is_ipv4() { "tcp" } else { "tcp6" };
            let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap();
            assert!(listeners(&table).contains(&address), "{address}");
        }
    }

    #[test]
    fn port_lists_are_read() {
        assert_eq!(local_ports("32768\t60999\n"), PortRange::new(32768, 60999));
        assert_eq!(local_ports("\n"), None);
        assert_eq!(reserved_ports("\n"), []);
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert_eq!(reserved_ports("8080,20000-59999\n"), [range(8080, 8080), range(20000, 59999)]);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[0-9A-F: \\n-,é]{0,200}") {
            let _ = (listeners(&text), local_ports(&text), reserved_ports(&text));
        }
    }
}
