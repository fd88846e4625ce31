//! The XDP program in the kernel, by BPF_PROG_TEST_RUN: the same verdicts as `classify` gives on
//! the host, for the packet table and for thousands of spoilt frames.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::os::fd::AsRawFd;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, XskMap};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use headgate_ebpf::map::{
    BLOCKED_V4, BLOCKED_V6, COUNTERS, HEARTBEAT, POOLS, PROGRAM, SERVICES, SETTINGS, XSKS,
};
use headgate_ebpf::table::{Case, Rules, cases, mutate};
use headgate_ebpf::{Action, BlockedPrefix, OBJECT, Verdict, classify};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use socket2::{Domain, Socket, Type};

#[test]
#[ignore = "needs root: loads the XDP program"]
fn table_with_a_socket() {
    let mut kernels = Kernels::default();
    for Case { name, frame, rules, verdict } in in_kernel(cases()) {
        let kernel = kernels.with(&rules, true);
        assert_eq!(kernel.run(&frame), (verdict, xdp(verdict)), "{name}: {frame:02x?}");
    }
}

#[test]
#[ignore = "needs root: loads the XDP program"]
fn table_without_a_socket() {
    let mut kernels = Kernels::default();
    for Case { name, frame, rules, .. } in in_kernel(cases()) {
        let kernel = kernels.with(&rules, false);
        let verdict = classify(&frame[..], &rules, 0, || Rules::NOW_NS).without_socket;
        assert_ne!(verdict.action(), Action::Redirect);
        assert_eq!(kernel.run(&frame), (verdict, xdp(verdict)), "{name}: {frame:02x?}");
    }
}

#[test]
#[ignore = "needs root: loads the XDP program"]
fn kernel_and_host_agree_on_spoilt_frames() {
    let rules = Rules::standard();
    let mut kernel = Kernel::new(&rules, true);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut frames: Vec<Vec<u8>> = cases().into_iter().map(|case| case.frame).collect();
    frames.retain(|frame| frame.len() >= SHORTEST);
    let mut seen = [0; Verdict::COUNT];
    for _ in 0..20_000 {
        let mut frame = frames[rng.random_range(..frames.len())].clone();
        mutate(&mut frame, || rng.random());
        if frame.len() < SHORTEST {
            continue;
        }
        let verdict = classify(&frame[..], &rules, 0, || Rules::NOW_NS).verdict;
        assert_eq!(kernel.run(&frame), (verdict, xdp(verdict)), "{frame:02x?}");
        seen[verdict.index() as usize] += 1;
    }
    // The frames are not all of one kind.
    for verdict in [Verdict::RedirectService, Verdict::RedirectPool, Verdict::DropBlocked] {
        assert!(seen[verdict.index() as usize] > 100, "{}: {seen:?}", verdict.name());
    }
}

#[test]
#[ignore = "needs root: loads the XDP program"]
fn kernel_and_host_agree_on_random_bytes() {
    let rules = Rules::standard();
    let mut kernel = Kernel::new(&rules, true);
    let mut rng = SmallRng::seed_from_u64(8);
    for _ in 0..5_000 {
        let mut frame = vec![0; rng.random_range(SHORTEST..200)];
        rng.fill(&mut frame[..]);
        // Past the first two hurdles, or nearly nothing would reach the IP headers.
        frame[0] &= !1;
        let ethertype: [u8; 2] = if rng.random() { [8, 0] } else { [0x86, 0xdd] };
        frame[12..14].copy_from_slice(&ethertype);
        let verdict = classify(&frame[..], &rules, 0, || Rules::NOW_NS).verdict;
        assert_eq!(kernel.run(&frame), (verdict, xdp(verdict)), "{frame:02x?}");
    }
}

#[test]
#[ignore = "needs root: loads the XDP program"]
fn fresh_maps_pass_everything() {
    let mut kernel = Kernel::load();
    for Case { name, frame, .. } in in_kernel(cases()) {
        let expected = (Verdict::PassDisabled, xdp(Verdict::PassDisabled));
        assert_eq!(kernel.run(&frame), expected, "{name}");
    }
}

#[test]
#[ignore = "needs root: loads the XDP program"]
fn a_socket_that_closes_leaves_its_slot() {
    let case = cases().into_iter().find(|case| case.verdict == Verdict::RedirectService).unwrap();
    let mut kernel = Kernel::new(&case.rules, true);
    assert_eq!(kernel.run(&case.frame).0, Verdict::RedirectService);
    kernel.socket = None;
    assert_eq!(kernel.run(&case.frame).0, Verdict::PassNoSocket);
}

/// The loaded program and its maps.
struct Kernel {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    counted: [u64; Verdict::COUNT],
    socket: Option<Socket>,
}

impl Kernel {
    fn new(rules: &Rules, with_socket: bool) -> Kernel {
        let mut kernel = Kernel::load();
        kernel.install(rules);
        if with_socket {
            let socket = Socket::new(Domain::from(AF_XDP), Type::from(SOCK_RAW), None).unwrap();
            let map = kernel.ebpf.map_mut(XSKS).unwrap();
            XskMap::try_from(map).unwrap().set(0, socket.as_raw_fd(), 0).unwrap();
            kernel.socket = Some(socket);
        }
        kernel
    }

    fn load() -> Kernel {
        let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
        program(&mut ebpf).load().unwrap();
        let counters = PerCpuArray::try_from(ebpf.take_map(COUNTERS).unwrap()).unwrap();
        Kernel { ebpf, counters, counted: [0; Verdict::COUNT], socket: None }
    }

    fn install(&mut self, rules: &Rules) {
        let map = self.ebpf.map_mut(SERVICES).unwrap();
        let mut services = HashMap::<_, [u8; 20], [u8; 8]>::try_from(map).unwrap();
        for (endpoint, rule) in &rules.services {
            services.insert(endpoint.to_bytes(), rule.to_bytes(), 0).unwrap();
        }
        let map = self.ebpf.map_mut(POOLS).unwrap();
        let mut pools = HashMap::<_, [u8; 20], [u8; 8]>::try_from(map).unwrap();
        for (key, rule) in &rules.pools {
            pools.insert(key.to_bytes(), rule.to_bytes(), 0).unwrap();
        }
        for prefix in &rules.blocked {
            match *prefix {
                BlockedPrefix::V4 { length, data } => {
                    let map = self.ebpf.map_mut(BLOCKED_V4).unwrap();
                    let mut trie = LpmTrie::<_, [u8; 4], u32>::try_from(map).unwrap();
                    trie.insert(&Key::new(length, data), 1, 0).unwrap();
                }
                BlockedPrefix::V6 { length, data } => {
                    let map = self.ebpf.map_mut(BLOCKED_V6).unwrap();
                    let mut trie = LpmTrie::<_, [u8; 16], u32>::try_from(map).unwrap();
                    trie.insert(&Key::new(length, data), 1, 0).unwrap();
                }
            }
        }
        let beat = rules.heartbeat_age_ns.map_or(0, |age| monotonic_ns() - age);
        let map = self.ebpf.map_mut(HEARTBEAT).unwrap();
        Array::<_, u64>::try_from(map).unwrap().set(0, beat, 0).unwrap();
        let map = self.ebpf.map_mut(SETTINGS).unwrap();
        let mut settings = Array::<_, [u64; 2]>::try_from(map).unwrap();
        settings.set(0, rules.settings.to_words(), 0).unwrap();
    }

    /// The one verdict that was counted, and what the program returned.
    fn run(&mut self, frame: &[u8]) -> (Verdict, u32) {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let result = program(&mut self.ebpf).test_run(options).unwrap();
        let counted = Verdict::ALL
            .map(|verdict| self.counters.get(&verdict.index(), 0).unwrap().iter().sum::<u64>());
        let moved = Verdict::ALL.into_iter().filter(|verdict| {
            let index = verdict.index() as usize;
            counted[index] != self.counted[index]
        });
        let [verdict] = moved.collect::<Vec<_>>()[..] else {
            panic!("counters went from {:?} to {counted:?}", self.counted)
        };
        let index = verdict.index() as usize;
        assert_eq!(counted[index], self.counted[index] + 1);
        self.counted = counted;
        (verdict, result.return_value)
    }
}

/// One loaded program, loaded anew when the rules change.
#[derive(Default)]
struct Kernels(Option<(Rules, Kernel)>);

impl Kernels {
    fn with(&mut self, rules: &Rules, with_socket: bool) -> &mut Kernel {
        if self.0.as_ref().is_none_or(|(loaded, _)| loaded != rules) {
            self.0 = None;
        }
        let (_, kernel) =
            self.0.get_or_insert_with(|| (rules.clone(), Kernel::new(rules, with_socket)));
        kernel
    }
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut(PROGRAM).unwrap().try_into().unwrap()
}

/// The cases whose frames BPF_PROG_TEST_RUN takes.
fn in_kernel(cases: Vec<Case>) -> impl Iterator<Item = Case> {
    cases.into_iter().filter(|case| case.frame.len() >= SHORTEST)
}

/// What the program returns to the kernel for a verdict.
fn xdp(verdict: Verdict) -> u32 {
    match verdict.action() {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Redirect => 4,
    }
}

fn monotonic_ns() -> u64 {
    headgate::worker::clock().as_nanos() as u64
}

const AF_XDP: i32 = 44;
const SOCK_RAW: i32 = 3;
/// An Ethernet header; BPF_PROG_TEST_RUN takes nothing shorter.
const SHORTEST: usize = 14;
