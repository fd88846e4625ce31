//! The built XDP program.

/// The XDP program as an ELF object for `bpfel`, aligned as loaders want it.
///
/// It is checked in, so that building the gateway needs no eBPF toolchain; `cargo xtask ebpf`
/// rebuilds it byte for byte. Loading it takes Linux 6.1 or later, CAP_BPF, CAP_NET_ADMIN and
/// CAP_PERFMON (the length in an IP header is added to a packet pointer).
pub static OBJECT: &[u8] = &ALIGNED.0;

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../prebuilt/headgate.bpf.o"));

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);
