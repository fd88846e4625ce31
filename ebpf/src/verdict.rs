//! What happened to a frame, by name.

use crate::map::OnDead;

/// Why a frame was passed, dropped or redirected. Every frame is counted under exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// The program is switched off, or was never configured.
    PassDisabled,
    /// The destination MAC address is a group address: broadcast, neighbour discovery.
    PassNotUnicast,
    /// The frame carries a VLAN tag.
    PassVlan,
    /// Neither IPv4 nor IPv6: ARP, 802.3 lengths, anything else.
    PassNotIp,
    /// The frame ends before its headers, or before the length the IP header states.
    PassTruncated,
    /// IP version, header length or total length contradict each other.
    PassMalformed,
    /// A protocol that is neither TCP nor UDP: ICMP, ICMPv6, tunnels.
    PassOtherProtocol,
    /// An IPv6 extension header, fragments included, follows the IPv6 header.
    PassExtensionHeader,
    /// An IPv4 fragment without ports.
    PassFragment,
    /// TCP or UDP for an address and port that nobody configured.
    PassNoMatch,
    /// A match, but the queue's worker gave no sign of life in time; the rule says pass.
    PassDead,
    /// A match, but no AF_XDP socket takes this queue; the rule says pass.
    PassNoSocket,
    /// The source address lies in a blocked prefix.
    DropBlocked,
    /// The first fragment of a datagram that matches; a fragmented flow cannot be proxied, and the
    /// kernel would answer the reassembled segment with a reset.
    DropFragment,
    /// A match, but the queue's worker gave no sign of life in time; the rule says drop.
    DropDead,
    /// A match, but no AF_XDP socket takes this queue; the rule says drop.
    DropNoSocket,
    /// Address, protocol and port of a service: to the queue's worker.
    RedirectService,
    /// A pool address and a port in its range: to the queue's worker.
    RedirectPool,
}

impl Verdict {
    /// Every verdict, in the order of the counters.
    pub const ALL: [Self; Self::COUNT] = [
        Self::PassDisabled,
        Self::PassNotUnicast,
        Self::PassVlan,
        Self::PassNotIp,
        Self::PassTruncated,
        Self::PassMalformed,
        Self::PassOtherProtocol,
        Self::PassExtensionHeader,
        Self::PassFragment,
        Self::PassNoMatch,
        Self::PassDead,
        Self::PassNoSocket,
        Self::DropBlocked,
        Self::DropFragment,
        Self::DropDead,
        Self::DropNoSocket,
        Self::RedirectService,
        Self::RedirectPool,
    ];

    /// Number of verdicts, and of entries in the map of counters.
    pub const COUNT: usize = Self::RedirectPool as usize + 1;

    /// The verdict's entry in the map of counters.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// What the XDP program does with the frame.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::PassDisabled
            | Self::PassNotUnicast
            | Self::PassVlan
            | Self::PassNotIp
            | Self::PassTruncated
            | Self::PassMalformed
            | Self::PassOtherProtocol
            | Self::PassExtensionHeader
            | Self::PassFragment
            | Self::PassNoMatch
            | Self::PassDead
            | Self::PassNoSocket => Action::Pass,
            Self::DropBlocked | Self::DropFragment | Self::DropDead | Self::DropNoSocket => {
                Action::Drop
            }
            Self::RedirectService | Self::RedirectPool => Action::Redirect,
        }
    }

    /// The verdict's name in status output and metrics; it does not change between releases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PassDisabled => "pass-disabled",
            Self::PassNotUnicast => "pass-not-unicast",
            Self::PassVlan => "pass-vlan",
            Self::PassNotIp => "pass-not-ip",
            Self::PassTruncated => "pass-truncated",
            Self::PassMalformed => "pass-malformed",
            Self::PassOtherProtocol => "pass-other-protocol",
            Self::PassExtensionHeader => "pass-extension-header",
            Self::PassFragment => "pass-fragment",
            Self::PassNoMatch => "pass-no-match",
            Self::PassDead => "pass-dead",
            Self::PassNoSocket => "pass-no-socket",
            Self::DropBlocked => "drop-blocked",
            Self::DropFragment => "drop-fragment",
            Self::DropDead => "drop-dead",
            Self::DropNoSocket => "drop-no-socket",
            Self::RedirectService => "redirect-service",
            Self::RedirectPool => "redirect-pool",
        }
    }

    /// The verdict on a match whose worker is dead.
    #[inline(always)]
    pub(crate) const fn dead(on_dead: OnDead) -> Self {
        match on_dead {
            OnDead::Pass => Self::PassDead,
            OnDead::Drop => Self::DropDead,
        }
    }

    /// The verdict on a match whose queue has no socket.
    #[inline(always)]
    pub(crate) const fn no_socket(on_dead: OnDead) -> Self {
        match on_dead {
            OnDead::Pass => Self::PassNoSocket,
            OnDead::Drop => Self::DropNoSocket,
        }
    }
}

/// What the XDP program does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// To the kernel stack.
    Pass,
    /// Away with it.
    Drop,
    /// To the AF_XDP socket of the queue.
    Redirect,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_is_in_counter_order_and_names_are_unique() {
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict.index() as usize, index);
        }
        let names: BTreeSet<_> = Verdict::ALL.into_iter().map(Verdict::name).collect();
        assert_eq!(names.len(), Verdict::COUNT);
    }

    #[test]
    fn a_name_begins_with_its_action() {
        for verdict in Verdict::ALL {
            let action = match verdict.action() {
                Action::Pass => "pass-",
                Action::Drop => "drop-",
                Action::Redirect => "redirect-",
            };
            assert!(verdict.name().starts_with(action), "{}", verdict.name());
        }
    }
}
