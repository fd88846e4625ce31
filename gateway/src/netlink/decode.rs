//! From netlink messages to the values of [`crate::routes`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
    NeighbourState as KernelState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
    RouteType, RouteVia,
};

use crate::routes::{Link, Neighbour, NeighbourState, Route, RouteHop};

pub(super) fn link(message: &LinkMessage) -> (u32, Link) {
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = address.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    (message.header.index, link)
}

/// The host's own address; on a point-to-point link `Address` is the peer's.
pub(super) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let attributes = || message.attributes.iter();
    attributes().find_map(local).or_else(|| attributes().find_map(address))
}

/// A unicast route of the main table, or one that makes destinations unreachable.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let RouteMessage { header, attributes, .. } = message;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut destination = unspecified;
    let mut metric = 0;
    let mut hops = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(|path| {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                RouteHop {
                    ifindex: path.interface_index,
                    gateway: gateway(&path.attributes),
                    weight: u32::from(path.hops) + 1,
                    dead: path.flags.intersects(dead),
                }
            })),
            _ => {}
        }
    }
    let cloned_or_special = header.flags.contains(RouteFlags::Cloned)
        || header.tos != 0
        || header.source_prefix_length != 0;
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || cloned_or_special {
        return None;
    }
    match header.kind {
        RouteType::Unicast => hops.extend(single_hop(message)),
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => hops.clear(),
        _ => return None,
    }
    if header.kind == RouteType::Unicast && hops.is_empty() {
        return None;
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Route { prefix, metric, hops })
}

/// The station a message is about, and its state.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr, Neighbour)> {
    let ip_family = matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6);
    if !ip_family || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        KernelState::Reachable
        | KernelState::Delay
        | KernelState::Probe
        | KernelState::Permanent
        | KernelState::Noarp => NeighbourState::Valid,
        KernelState::Stale => NeighbourState::Stale,
        KernelState::Failed => NeighbourState::Failed,
        _ => NeighbourState::Incomplete,
    };
    Some((message.header.ifindex, address?, Neighbour { state, mac }))
}

fn single_hop(message: &RouteMessage) -> Option<RouteHop> {
    let ifindex = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })?;
    let dead = message.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    Some(RouteHop { ifindex, gateway: gateway(&message.attributes), weight: 1, dead })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
