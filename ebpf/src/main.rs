//! The XDP program: the maps, and `classify` on the frame at hand.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "frames and map values are reached through raw pointers")]

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, xdp_action};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, XskMap};
use aya_ebpf::programs::XdpContext;
use headgate_ebpf::map::{MAX_BLOCKED, MAX_POOLS, MAX_QUEUES, MAX_SERVICES};
use headgate_ebpf::{
    Action, Decision, Endpoint, Packet, PoolKey, PoolRule, ServiceRule, Settings, Tables, Verdict,
    classify,
};

#[map]
static SERVICES: HashMap<Endpoint, ServiceRule> = HashMap::with_max_entries(MAX_SERVICES, 0);
#[map]
static POOLS: HashMap<PoolKey, PoolRule> = HashMap::with_max_entries(MAX_POOLS, 0);
#[map]
static BLOCKED_V4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(MAX_BLOCKED, 0);
#[map]
static BLOCKED_V6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(MAX_BLOCKED, 0);
#[map]
static XSKS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(MAX_QUEUES, BPF_F_MMAPABLE);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::COUNT as u32, 0);

#[xdp]
pub fn headgate(ctx: XdpContext) -> u32 {
    let queue = ctx.rx_queue_index();
    let frame = Frame { start: ctx.data(), end: ctx.data_end() };
    // SAFETY: the helper only reads the clock.
    let decision = classify(&frame, &Maps, queue, || unsafe { bpf_ktime_get_ns() });
    let (verdict, action) = carry_out(decision, queue);
    count(verdict);
    action
}

#[inline(always)]
fn carry_out(Decision { verdict, without_socket }: Decision, queue: u32) -> (Verdict, u32) {
    match verdict.action() {
        Action::Pass => (verdict, xdp_action::XDP_PASS),
        Action::Drop => (verdict, xdp_action::XDP_DROP),
        Action::Redirect => {
            let otherwise = match without_socket.action() {
                Action::Drop => xdp_action::XDP_DROP,
                Action::Pass | Action::Redirect => xdp_action::XDP_PASS,
            };
            match XSKS.redirect(queue, u64::from(otherwise)) {
                Ok(action) => (verdict, action),
                Err(_) => (without_socket, otherwise),
            }
        }
    }
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict.index()) {
        // SAFETY: the pointer is to this CPU's own, aligned u64, and an XDP program is not
        // interrupted by another on the same CPU.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

/// The frame between `start` and `end`, as the driver gave it.
struct Frame {
    start: usize,
    end: usize,
}

impl Packet for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if self.start + offset + N > self.end {
            return None;
        }
        let bytes = (self.start + offset) as *const [u8; N];
        // SAFETY: the N bytes lie before the frame's end, and an array of bytes has no alignment;
        // the verifier proves the same.
        Some(unsafe { *bytes })
    }

    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        // No frame comes near 2^17 bytes. The verifier of Linux 6.1 does not know how large a
        // swapped u16 can be, and the compiler must not find out that the mask changes nothing.
        self.start + (black_box(length) & 0x1_ffff) <= self.end
    }
}

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        SETTINGS.get(0).copied()
    }

    #[inline(always)]
    fn heartbeat_ns(&self, queue: u32) -> Option<u64> {
        HEARTBEAT.get(queue).copied()
    }

    #[inline(always)]
    fn service(&self, endpoint: &Endpoint) -> Option<ServiceRule> {
        // SAFETY: an entry removed at this moment may hold another rule's bytes; any bytes are a
        // rule, and the copy is taken at once.
        unsafe { SERVICES.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn pool(&self, key: &PoolKey) -> Option<PoolRule> {
        // SAFETY: as for services.
        unsafe { POOLS.get(key) }.copied()
    }

    #[inline(always)]
    fn is_blocked_v4(&self, source: [u8; 4]) -> bool {
        BLOCKED_V4.get(Key::new(32, source)).is_some()
    }

    #[inline(always)]
    fn is_blocked_v6(&self, source: [u8; 16]) -> bool {
        BLOCKED_V6.get(Key::new(128, source)).is_some()
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
