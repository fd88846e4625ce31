//! The two netlink sockets: one hears notifications, one asks questions and reads tables.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
};
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::decode;
use crate::routes::{Link, Neighbour, Route};

/// Hears of changes.
#[derive(Debug)]
pub(super) struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Asks, and reads tables.
#[derive(Debug)]
pub(super) struct Control {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Events {
    /// Joins the groups for links, addresses, routes and neighbours. The socket does not block.
    pub(super) fn open(buffer: usize) -> io::Result<Self> {
        let socket = open()?;
        // More room means fewer overruns; beyond net.core.rmem_max it needs CAP_NET_ADMIN.
        if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &buffer);
        }
        socket.set_non_blocking(true)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// The messages of one datagram; `None` if there is none now.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<Message>>> {
        self.buffer.clear();
        match self.socket.recv_from(&mut self.buffer, 0) {
            Ok((_, from)) if from.port_number() != 0 => return Ok(Some(Vec::new())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut messages = Vec::new();
        let _ = each_message(&self.buffer, |_, payload| {
            if let NetlinkPayload::InnerMessage(message) = payload {
                messages.push(message);
            }
            Ok(())
        });
        Ok(Some(messages))
    }

    /// Throws away what waits.
    pub(super) fn discard(&mut self) {
        for _ in 0..DISCARDED {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // More was lost meanwhile.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        let socket = open()?;
        // The kernel answers at once; a limit nevertheless, so that nothing can hang here.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM), sequence: 0 })
    }

    pub(super) fn links(&mut self) -> io::Result<HashMap<u32, Link>> {
        self.dump(
            || Message::GetLink(LinkMessage::default()),
            |links: &mut HashMap<_, _>, message| {
                if let Message::NewLink(message) = message {
                    links.extend([decode::link(&message)]);
                }
            },
        )
    }

    pub(super) fn addresses(&mut self) -> io::Result<HashSet<IpAddr>> {
        let request = || Message::GetAddress(AddressMessage::default());
        self.dump(request, |addresses: &mut HashSet<_>, message| {
            if let Message::NewAddress(message) = message {
                addresses.extend(decode::address(&message));
            }
        })
    }

    pub(super) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let header = RouteHeader { address_family: family, ..Default::default() };
            let request = || {
                let mut message = RouteMessage::default();
                message.header = header.clone();
                Message::GetRoute(message)
            };
            all.extend(self.dump(request, |routes: &mut Vec<_>, message| {
                if let Message::NewRoute(message) = message {
                    routes.extend(decode::route(&message));
                }
            })?);
        }
        Ok(all)
    }

    pub(super) fn neighbours(&mut self) -> io::Result<HashMap<(u32, IpAddr), Neighbour>> {
        let request = || Message::GetNeighbour(NeighbourMessage::default());
        self.dump(request, |neighbours: &mut HashMap<_, _>, message| {
            if let Message::NewNeighbour(message) = message
                && let Some((ifindex, address, neighbour)) = decode::neighbour(&message)
            {
                neighbours.insert((ifindex, address), neighbour);
            }
        })
    }

    /// Asks the kernel to resolve or confirm a neighbour, as if a packet of its own was to be sent there.
    pub(super) fn resolve(&mut self, ifindex: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            family: match address {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            },
            ifindex,
            flags: NeighbourFlags::Use,
            ..Default::default()
        };
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(flags, Message::NewNeighbour(message))?;
        self.answer(|_| ()).map(|_| ())
    }

    /// Reads a table; again if it changed meanwhile.
    fn dump<T: Default>(
        &mut self,
        request: impl Fn() -> Message,
        mut take: impl FnMut(&mut T, Message),
    ) -> io::Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            self.request(NLM_F_REQUEST | NLM_F_DUMP, request())?;
            let mut table = T::default();
            if self.answer(|message| take(&mut table, message))? == Consistency::Whole {
                return Ok(table);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the table changes faster than it can be read",
        ))
    }

    fn request(&mut self, flags: u16, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(|_| ())
    }

    /// Receives until the answer to the last request is complete.
    fn answer(&mut self, mut take: impl FnMut(Message)) -> io::Result<Consistency> {
        let mut consistency = Consistency::Whole;
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                // Anybody may send to a netlink socket; only the kernel is believed.
                Ok((_, from)) if from.port_number() != 0 => continue,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let sequence = self.sequence;
            let mut done = false;
            each_message(&self.buffer, |header, payload| {
                if header.sequence_number != sequence {
                    return Ok(());
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Torn;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) => {
                        done = true;
                        if error.code.is_some() {
                            return Err(error.to_io());
                        }
                    }
                    _ => {}
                }
                Ok(())
            })?;
            if done {
                return Ok(consistency);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consistency {
    Whole,
    /// The table changed while it was read.
    Torn,
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    Ok(socket)
}

/// Calls `take` for each message of a datagram. One that this version cannot read is left out.
fn each_message(
    mut bytes: &[u8],
    mut take: impl FnMut(NetlinkHeader, NetlinkPayload<Message>) -> io::Result<()>,
) -> io::Result<()> {
    while let Ok(buffer) = NetlinkBuffer::new_checked(bytes) {
        let length = (buffer.length() as usize).next_multiple_of(4);
        match NetlinkMessage::<Message>::deserialize(bytes) {
            Ok(message) => {
                let (header, payload) = message.into_parts();
                take(header, payload)?;
            }
            Err(error) => tracing::debug!(%error, "a netlink message of an unknown form"),
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(())
}

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// The kernel fills up to 32 KiB at a time into a dump.
const DATAGRAM: usize = 64 << 10;
/// More datagrams than any buffer holds.
const DISCARDED: usize = 1 << 20;
const DUMP_ATTEMPTS: usize = 8;
const ANSWER_SECONDS: i64 = 5;
