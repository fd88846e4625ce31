//! Builds the lab's wires: namespaces, veth pairs, addresses, routes, offloads.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, Result};

use super::address::{
    CLIENT, DIRECT_CLIENT, DIRECT_ORIGIN, GATEWAY_CLIENT_SIDE, GATEWAY_ORIGIN_SIDE, POOL, SPARES,
    origin4, origin6, pool4, pool6, vip4, vip6,
};
use super::{LabConfig, Namespace};
use crate::process;

/// The client's interface towards the gateway.
pub const CLIENT_NIC: &str = "c0";
/// The gateway's interface towards the client.
pub const GATEWAY_CLIENT_NIC: &str = "gc";
/// The gateway's interface towards the origin.
pub const GATEWAY_ORIGIN_NIC: &str = "go";
/// The origin's interface towards the gateway.
pub const ORIGIN_NIC: &str = "o0";
/// Both ends of the link between client and origin that leaves the gateway out.
pub const DIRECT_NIC: &str = "direct";

/// The offloads that are switched off on every end, as `ethtool -K` takes them. Without this a
/// local sender leaves checksums to hardware that is not there, and sends frames larger than the MTU.
pub const OFFLOADS_OFF: &[&str] =
    &["tx", "off", "tso", "off", "gso", "off", "gro", "off", "txvlan", "off"];

/// Makes the three namespaces and connects them. What is there when this fails is the caller's to
/// take down.
pub(super) fn build(
    client: &Namespace,
    gateway: &Namespace,
    origin: &Namespace,
    config: &LabConfig,
) -> Result<()> {
    for namespace in [client, gateway, origin] {
        process::output(process::command("ip").args(["netns", "add", namespace.name()]))?;
        namespace.enter(|| set_kernel_options(KERNEL_OPTIONS))??;
    }
    client.enter(|| set_kernel_options(CLIENT_OPTIONS))??;
    link(gateway, GATEWAY_CLIENT_NIC, client, CLIENT_NIC, config)?;
    link(gateway, GATEWAY_ORIGIN_NIC, origin, ORIGIN_NIC, config)?;
    batch(client, &client_plan())?;
    batch(gateway, &gateway_plan())?;
    batch(origin, &origin_plan())?;
    if config.direct {
        link(client, DIRECT_NIC, origin, DIRECT_NIC, config)?;
        batch(client, &format!("addr add {DIRECT_CLIENT}/24 dev {DIRECT_NIC}\n"))?;
        batch(origin, &format!("addr add {DIRECT_ORIGIN}/24 dev {DIRECT_NIC}\n"))?;
    }
    for (from, to) in [(client, GATEWAY_CLIENT_SIDE), (origin, GATEWAY_ORIGIN_SIDE)] {
        for address in to {
            process::output(from.command("ping").args(["-c1", "-W2", &address.to_string()]))
                .context("the lab's wires do not carry a ping")?;
        }
    }
    Ok(())
}

fn client_plan() -> String {
    let mut plan = addresses(CLIENT_NIC, &CLIENT, true);
    plan += &default_routes(&GATEWAY_CLIENT_SIDE);
    plan
}

fn gateway_plan() -> String {
    let vips: Vec<IpAddr> = (0..SPARES).flat_map(|n| [vip4(n), vip6(n)]).collect();
    let pool: Vec<IpAddr> = (0..POOL).flat_map(|n| [pool4(n), pool6(n)]).collect();
    addresses(GATEWAY_CLIENT_NIC, &GATEWAY_CLIENT_SIDE, true)
        + &addresses(GATEWAY_CLIENT_NIC, &vips, false)
        + &addresses(GATEWAY_ORIGIN_NIC, &GATEWAY_ORIGIN_SIDE, true)
        + &addresses(GATEWAY_ORIGIN_NIC, &pool, false)
}

fn origin_plan() -> String {
    let mut own: Vec<IpAddr> = (0..SPARES).flat_map(|n| [origin4(n), origin6(n)]).collect();
    own.sort();
    addresses(ORIGIN_NIC, &own, true) + &default_routes(&GATEWAY_ORIGIN_SIDE)
}

/// Lines for `ip -batch`. An address on its link's prefix, or as a lone host address.
fn addresses(nic: &str, addresses: &[IpAddr], on_link: bool) -> String {
    let mut lines = String::new();
    for address in addresses {
        let (length, rest) = match (address, on_link) {
            (IpAddr::V4(_), true) => (24, ""),
            (IpAddr::V4(_), false) => (32, ""),
            (IpAddr::V6(_), true) => (64, " nodad"),
            (IpAddr::V6(_), false) => (128, " nodad"),
        };
        let _ = writeln!(lines, "addr add {address}/{length} dev {nic}{rest}");
    }
    lines
}

fn default_routes(via: &[IpAddr; 2]) -> String {
    format!("route add 0.0.0.0/0 via {}\nroute add ::/0 via {}\n", via[0], via[1])
}

fn link(
    here: &Namespace,
    nic: &str,
    there: &Namespace,
    peer: &str,
    config: &LabConfig,
) -> Result<()> {
    let (queues, mtu) = (config.queues, config.mtu);
    let shape = format!("numrxqueues {queues} numtxqueues {queues} mtu {mtu}");
    batch(
        here,
        &format!(
            "link set lo up\n\
             link add {nic} {shape} type veth peer name {peer} {shape} netns {}\n\
             link set {nic} up\n",
            there.name()
        ),
    )?;
    batch(there, &format!("link set lo up\nlink set {peer} up\n"))?;
    for (namespace, nic) in [(here, nic), (there, peer)] {
        process::output(namespace.command("ethtool").args(["-K", nic]).args(OFFLOADS_OFF))?;
    }
    Ok(())
}

fn batch(namespace: &Namespace, lines: &str) -> Result<()> {
    let mut command = process::command("ip");
    command.args(["-n", namespace.name(), "-batch", "-"]);
    process::output_with_input(&mut command, lines).map(drop)
}

/// Runs inside a namespace.
fn set_kernel_options(options: &[(&str, &str)]) -> Result<()> {
    for (option, value) in options {
        let file = format!("/proc/sys/net/{option}");
        std::fs::write(&file, value).with_context(|| format!("cannot set {file} to {value}"))?;
    }
    Ok(())
}

/// Addresses are usable at once (no duplicate address detection), and nobody forwards behind the
/// gateway's back.
const KERNEL_OPTIONS: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv4/ip_forward", "0"),
];

/// Ports enough for tens of thousands of new connections a second.
const CLIENT_OPTIONS: &[(&str, &str)] = &[("ipv4/ip_local_port_range", "1024 65535")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_carry_the_prefix_and_come_first() {
        let plan = gateway_plan();
        let lines: Vec<&str> = plan.lines().collect();
        assert_eq!(lines[0], "addr add 198.51.100.1/24 dev gc");
        assert_eq!(lines[1], "addr add 2001:db8:1::1/64 dev gc nodad");
        assert!(lines.contains(&"addr add 198.51.100.80/32 dev gc"));
        assert!(lines.contains(&"addr add 2001:db8:2::1f/128 dev go nodad"));
        assert_eq!(lines.len(), 4 + 2 * usize::from(SPARES) + 2 * usize::from(POOL));
    }

    #[test]
    fn the_origin_reaches_both_families_by_the_gateway() {
        let plan = origin_plan();
        assert!(plan.contains("addr add 192.0.2.80/24 dev o0\n"));
        assert!(
            plan.ends_with("route add 0.0.0.0/0 via 192.0.2.1\nroute add ::/0 via 2001:db8:2::1\n")
        );
    }
}
