//! Limits and timeouts of a stack.

use smoltcp::time::Duration;

use crate::table::MAX_INDEX;

/// Everything that can be set about a [`Stack`](crate::Stack). The default suits one worker of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Largest IP packet sent, in bytes; what we announce as MSS follows from it. Default 1500.
    pub mtu: u16,
    /// Smaller sizes for [`Stack::lower_mtu`](crate::Stack::lower_mtu), in bytes, descending. Default 1400, 1280, 576.
    pub lower_mtus: Vec<u16>,
    /// Receive buffer of a connection in bytes, which is also its greatest window: 536 to 65 535. Default 65 535.
    pub receive_buffer: usize,
    /// Send buffer of a connection in bytes: 536 to 1 048 576. Default 131 072.
    pub send_buffer: usize,

    /// Most connections, open or closed and not released yet. Default 16 384.
    pub max_connections: usize,
    /// Most handshakes that a client began and did not complete. Default 16 384.
    pub max_half_open: usize,
    /// Most TIME-WAIT records; the oldest gives way. Default 65 536.
    pub max_time_wait: usize,
    /// Released connections whose buffers are kept for the next ones. Default 1024.
    pub max_spare: usize,

    /// How long a delayed acknowledgment may wait (RFC 9293 section 3.8.6.3: below 500 ms). Default 10 ms.
    pub ack_delay: Duration,
    /// From a client's SYN to the completion of the handshake. Default 15 s.
    pub handshake_timeout: Duration,
    /// From our SYN to the completion of the handshake. Default 10 s.
    pub connect_timeout: Duration,
    /// How often an unanswered SYN-ACK is sent again, after 1, 2, 4, … s. Default 3.
    pub syn_ack_retries: u8,
    /// How long sent data or a FIN may stay unacknowledged (R2 of RFC 9293 section 3.8.3). Default 60 s.
    pub retransmission_timeout: Duration,
    /// How long a peer may keep its window closed (RFC 6429). Default 120 s.
    pub persist_timeout: Duration,
    /// How long a connection may be without any progress in either direction. Default 300 s.
    pub idle_timeout: Duration,
    /// How long a peer may be silent between our FIN and its own. Default 120 s.
    pub fin_wait_timeout: Duration,
    /// How long a finished connection is remembered (2 MSL of RFC 9293 section 3.4.2). Default 60 s.
    pub time_wait: Duration,

    /// Resets for segments that belong to no connection: per second, on average. Default 1000.
    pub resets_per_second: u32,
    /// The same: at once. Default 100.
    pub resets_burst: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 1500,
            lower_mtus: vec![1400, 1280, 576],
            receive_buffer: MAX_RECEIVE_BUFFER,
            send_buffer: 128 * 1024,
            max_connections: 16_384,
            max_half_open: 16_384,
            max_time_wait: 65_536,
            max_spare: 1024,
            ack_delay: Duration::from_millis(10),
            handshake_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            syn_ack_retries: 3,
            retransmission_timeout: Duration::from_secs(60),
            persist_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(300),
            fin_wait_timeout: Duration::from_secs(120),
            time_wait: Duration::from_secs(60),
            resets_per_second: 1000,
            resets_burst: 100,
        }
    }
}

impl Config {
    /// Verifies that every value is in its range.
    ///
    /// # Errors
    /// The first value that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let within = |knob, value, least, most| {
            let fits = (least..=most).contains(&value);
            if fits { Ok(()) } else { Err(ConfigError::OutOfRange { knob, value, least, most }) }
        };
        let longest = MAX_TIMEOUT.total_millis();
        let millis = |knob, value: Duration, least| {
            let millis = usize::try_from(value.total_millis()).unwrap_or(usize::MAX);
            within(knob, millis, least, longest as usize)
        };
        within("mtu", self.mtu.into(), MIN_MTU, usize::from(u16::MAX))?;
        for mtu in &self.lower_mtus {
            within("lower_mtus", usize::from(*mtu), MIN_MTU, usize::from(u16::MAX))?;
        }
        within("lower_mtus (how many)", self.lower_mtus.len(), 0, 15)?;
        within("receive_buffer", self.receive_buffer, MIN_BUFFER, MAX_RECEIVE_BUFFER)?;
        within("send_buffer", self.send_buffer, MIN_BUFFER, MAX_SEND_BUFFER)?;
        within("max_connections", self.max_connections, 1, MAX_INDEX as usize)?;
        within("max_half_open", self.max_half_open, 1, MAX_INDEX as usize)?;
        within("max_time_wait", self.max_time_wait, 1, MAX_INDEX as usize)?;
        within("syn_ack_retries", self.syn_ack_retries.into(), 0, 10)?;
        millis("ack_delay (ms)", self.ack_delay, 0)?;
        within("ack_delay (ms)", self.ack_delay.total_millis() as usize, 0, 499)?;
        millis("handshake_timeout (ms)", self.handshake_timeout, 1)?;
        millis("connect_timeout (ms)", self.connect_timeout, 1)?;
        millis("retransmission_timeout (ms)", self.retransmission_timeout, 1)?;
        millis("persist_timeout (ms)", self.persist_timeout, 1)?;
        millis("idle_timeout (ms)", self.idle_timeout, 1)?;
        millis("fin_wait_timeout (ms)", self.fin_wait_timeout, 1)?;
        millis("time_wait (ms)", self.time_wait, 1)
    }

    /// The size of class zero, then the lower ones in descending order.
    pub(crate) fn mtu_classes(&self) -> Vec<u16> {
        let mut lower: Vec<u16> =
            self.lower_mtus.iter().copied().filter(|mtu| *mtu < self.mtu).collect();
        lower.sort_unstable_by(|a, b| b.cmp(a));
        lower.dedup();
        lower.insert(0, self.mtu);
        lower
    }
}

/// A [`Config`] that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value outside of its range.
    #[error("{knob} is {value}, but must be from {least} to {most}")]
    OutOfRange {
        /// Name of the field.
        knob: &'static str,
        /// Its value.
        value: usize,
        /// The least that is allowed.
        least: usize,
        /// The most that is allowed.
        most: usize,
    },
}

/// Above this the window would have to be scaled, which smoltcp 0.14.0 gets wrong during the handshake: it may then panic, or
/// deliver bytes that were never received.
const MAX_RECEIVE_BUFFER: usize = 65_535;
const MAX_SEND_BUFFER: usize = 1024 * 1024;
const MIN_BUFFER: usize = 536;
/// IPv6 header, TCP header with all options, and a little payload.
const MIN_MTU: usize = 128;
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn values_out_of_range_are_named() {
        let wrong = [
            ("mtu", Config { mtu: 60, ..Config::default() }),
            ("lower_mtus", Config { lower_mtus: vec![1280, 40], ..Config::default() }),
            ("receive_buffer", Config { receive_buffer: 65_536, ..Config::default() }),
            ("send_buffer", Config { send_buffer: 0, ..Config::default() }),
            ("max_connections", Config { max_connections: 0, ..Config::default() }),
            ("max_time_wait", Config { max_time_wait: 1 << 31, ..Config::default() }),
            ("ack_delay (ms)", Config { ack_delay: Duration::from_secs(1), ..Config::default() }),
            ("idle_timeout (ms)", Config { idle_timeout: Duration::MAX, ..Config::default() }),
            ("time_wait (ms)", Config { time_wait: Duration::ZERO, ..Config::default() }),
        ];
        for (name, config) in wrong {
            let ConfigError::OutOfRange { knob, .. } = config.validate().unwrap_err();
            assert_eq!(knob, name);
        }
    }

    #[test]
    fn classes_descend_from_the_mtu() {
        let config =
            Config { mtu: 1300, lower_mtus: vec![576, 1280, 1400, 1280], ..Config::default() };
        assert_eq!(config.mtu_classes(), [1300, 1280, 576]);
    }
}
