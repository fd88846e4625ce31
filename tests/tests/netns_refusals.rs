//! What headgate refuses to start with: one clear line, the documented exit code, and nothing left
//! behind on the host. And what its admin socket puts up with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use headgate::steer::{AttachMode, Steering};
use headgate::waker::Waker;
use headgate::xsk::{BindMode, QueueSpec, Xsk};
use nix::net::if_::if_nametoindex;
use xtask::lab::address::{GATEWAY_ORIGIN_SIDE, origin4, origin6, vip4, vip6};
use xtask::lab::{
    Behaviour, GATEWAY_CLIENT_NIC, GATEWAY_ORIGIN_NIC, GatewayConfig, Headgate, Lab, LabConfig,
    Origin, Transfer, four_pairs, headgate_binary, pattern,
};
use xtask::process;

/// Exit code of a bad configuration.
const BAD_CONFIG: i32 = 2;
/// Exit code of everything else that failed.
const FAILED: i32 = 1;
/// How long `headgate run` may take to refuse.
const SOON: Duration = Duration::from_secs(10);

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_configuration_that_does_not_fit_the_host_is_one_line_and_nothing_is_attached() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let good = config(&lab);
    let listens = |at: SocketAddr| lab.gateway().enter(|| TcpListener::bind(at)).unwrap().unwrap();
    let service = SocketAddr::new(vip4(0), 80).to_string();
    let own = SocketAddr::new(GATEWAY_ORIGIN_SIDE[0], 8000).to_string();
    for (from, to, listener, what, remedy) in [
        ("[nic.go]", "[nic.gx]", None, "no network interface `gx`", "did you mean `g"),
        ("[nic.go]", "[nic.lo]", None, "lo is not an Ethernet interface", "name one that is"),
        ("queues = 2", "queues = 3", None, "gc has 2 active receive queues", "ethtool -L gc"),
        ("", "", Some(service.as_str()), "listens on 198.51.100.80:80", "other addresses or ports"),
        ("", "", Some("0.0.0.0:80"), "listens on 0.0.0.0:80", "other addresses or ports"),
        ("", "", Some("192.0.2.19:30000"), "[pool.main] leases ports", "narrow the pool's `ports`"),
        ("", "", Some("0.0.0.0:59999"), "[pool.main] leases ports", "narrow the pool's `ports`"),
        ("192.0.2.80:8000", own.as_str(), None, "is an address of this host", "another host"),
    ] {
        let _listener = listener.map(|at| listens(at.parse().unwrap()));
        let refusal = refused(&lab, &good.replacen(from, to, 1), &[]);
        assert_eq!(refusal.code, BAD_CONFIG, "{}", refusal.text);
        // A listener on all addresses is in the way of several services.
        let lines: Vec<&str> = refusal.text.lines().collect();
        assert_eq!(lines.len(), if what.contains("0.0.0.0:80") { 2 } else { 1 }, "{lines:#?}");
        for line in lines {
            let (place, rest) = line.split_once(": ").unwrap();
            let numbers = place.rsplit(':').take(2).filter(|part| part.parse::<u32>().is_ok());
            assert!(place.contains("refused.toml:") && numbers.count() == 2, "no place: {place}");
            assert!(rest.contains(what) && rest.contains(remedy), "{rest}\nlacks {what}; {remedy}");
        }
        nothing_is_attached(&lab);
    }
    // What was refused because of its surroundings is good without them.
    let _origin = origin(&lab);
    let mut headgate = lab.headgate(&good).unwrap();
    served(&lab, 1);
    headgate.stop(Duration::from_secs(15)).unwrap();
    nothing_is_attached(&lab);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_second_gateway_is_refused_and_the_first_goes_on() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _origin = origin(&lab);
    let second = config(&lab);
    for (port, what) in
        [("xdp", "gc has an XDP program already"), ("packet", "stop that headgate first")]
    {
        let mut first = lab.headgate_with(&second, &["--port", port]).unwrap();
        std::thread::scope(|scope| {
            // Under way while the others come and go.
            let long = scope.spawn(|| get(&lab, 3_000_000, 7, &["--limit-rate", "1M"]));
            for arguments in [&["--port", port][..], &["--port", port, "--log", "json"]] {
                let refusal = refused(&lab, &second, arguments);
                assert_eq!(refusal.code, FAILED, "{}", refusal.text);
                assert!(refusal.one_line().contains(what), "{}", refusal.text);
                served(&lab, 2);
            }
            let done = long.join().unwrap().success().unwrap();
            assert_eq!(done.sha256, pattern::sha256(3_000_000, 7));
        });
        first.settle(Duration::from_secs(20)).unwrap();
        first.stop(Duration::from_secs(15)).unwrap();
        nothing_is_attached(&lab);
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn what_another_program_holds_is_not_taken_away() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let config = config(&lab);

    // An XDP program on the second NIC: the first one is let go of again.
    let foreign = lab.gateway().enter(|| {
        let index = if_nametoindex(GATEWAY_ORIGIN_NIC).unwrap();
        Steering::attach(GATEWAY_ORIGIN_NIC, index, &[AttachMode::Native], 1).unwrap()
    });
    let foreign = foreign.unwrap();
    let before = link(&lab, GATEWAY_ORIGIN_NIC);
    assert!(before.contains("xdp"), "{before}");
    let refusal = refused(&lab, &config, &[]);
    assert_eq!(refusal.code, FAILED, "{}", refusal.text);
    assert!(refusal.one_line().contains("go has an XDP program already"), "{}", refusal.text);
    assert_eq!(link(&lab, GATEWAY_ORIGIN_NIC), before);
    assert!(!link(&lab, GATEWAY_CLIENT_NIC).contains("xdp"));
    drop(foreign);
    nothing_is_attached(&lab);

    // The second queue of the first NIC.
    let held = lab.gateway().enter(|| {
        let name = GATEWAY_CLIENT_NIC.to_owned();
        let spec = QueueSpec { nic: 0, name, queue: 1, ring: 64, frames: 128 };
        Xsk::bind(&[spec], BindMode::Copy, Waker::new().unwrap(), 0, || {}).unwrap()
    });
    let refusal = refused(&lab, &config, &[]);
    assert_eq!(refusal.code, FAILED, "{}", refusal.text);
    let line = refusal.one_line();
    assert!(
        line.contains("gc queue 1") && line.contains("another process holds this queue"),
        "{line}"
    );
    nothing_is_attached(&lab);
    drop(held);

    let _origin = origin(&lab);
    let mut headgate = lab.headgate(&config).unwrap();
    served(&lab, 3);
    headgate.stop(Duration::from_secs(15)).unwrap();
    nothing_is_attached(&lab);
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn without_rights_it_says_which_are_needed() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    // Everybody may come as far as the program, its configuration and its admin socket.
    let folder = lab.directory().join("everybody");
    fs::create_dir(&folder).unwrap();
    for (path, mode) in [(lab.directory(), 0o711), (&folder, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let (binary, file) = (folder.join("headgate"), folder.join("refused.toml"));
    fs::copy(headgate_binary(), &binary).unwrap();
    let admin = folder.join("admin.sock");
    fs::write(&file, config(&lab).replace("{admin}", admin.to_str().unwrap())).unwrap();
    for (port, needed) in [("xdp", "CAP_BPF"), ("packet", "as root")] {
        let nobody =
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
        let run =
            [&binary.to_string_lossy(), "run", "--port", port, "--config", &file.to_string_lossy()]
                .map(str::to_owned);
        let refusal = run_to_the_end(&lab, &[&nobody[..], &run[..]].concat());
        assert_eq!(refusal.code, FAILED, "{}", refusal.text);
        assert!(refusal.one_line().contains(needed), "{}", refusal.text);
        nothing_is_attached(&lab);
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn an_admin_path_is_replaced_when_it_is_stale_and_refused_when_it_is_not() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let config = config(&lab);
    let admin = lab.directory().join("refused.sock");
    let refuse = |what: &str, arguments: &[&str]| {
        let refusal = refused(&lab, &config, arguments);
        assert_eq!(refusal.code, FAILED, "{}", refusal.text);
        let line = refusal.one_line();
        assert!(line.contains(admin.to_str().unwrap()), "{line}");
        assert!(line.contains(what) && line.contains("set another [gateway] admin"), "{line}");
        nothing_is_attached(&lab);
    };

    fs::write(&admin, "precious").unwrap();
    for port in ["xdp", "packet"] {
        refuse("is not a socket", &["--port", port]);
        assert_eq!(fs::read_to_string(&admin).unwrap(), "precious");
    }
    let target = lab.directory().join("target");
    fs::rename(&admin, &target).unwrap();
    std::os::unix::fs::symlink(&target, &admin).unwrap();
    refuse("is not a socket", &[]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    fs::remove_file(&admin).unwrap();
    fs::create_dir(&admin).unwrap();
    refuse("is not a socket", &[]);
    fs::remove_dir(&admin).unwrap();
    // Somebody who listens there, whoever it is, goes on listening.
    let somebody = UnixListener::bind(&admin).unwrap();
    refuse("another headgate serves", &[]);
    assert!(UnixStream::connect(&admin).is_ok());
    drop(somebody);
    fs::remove_file(&admin).unwrap();
    let file = fs::read_to_string(lab.directory().join("refused.toml")).unwrap();
    let under_a_file = file.replace("refused.sock", "target/refused.sock");
    let refusal = refused(&lab, &under_a_file, &[]);
    assert_eq!(refusal.code, FAILED, "{}", refusal.text);
    assert!(refusal.one_line().contains("set another [gateway] admin"), "{}", refusal.text);
    nothing_is_attached(&lab);

    // A socket file that nobody listens at.
    let own = lab.directory().join("admin.sock");
    drop(UnixListener::bind(&own).unwrap());
    let mut headgate = lab.headgate(&config).unwrap();
    assert_eq!(headgate.socket(), own);
    assert!(fs::symlink_metadata(&own).unwrap().file_type().is_socket());
    headgate.stop(Duration::from_secs(15)).unwrap();
    assert!(!own.exists(), "its socket file outlives it");
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn clients_of_the_admin_socket_that_misbehave_disturb_nobody() {
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _origin = origin(&lab);
    let mut headgate = lab.headgate(&config(&lab)).unwrap();
    let socket = headgate.socket();
    std::thread::scope(|scope| {
        let long = scope.spawn(|| get(&lab, 3_000_000, 9, &["--limit-rate", "1M"]));
        for (seed, (what, abuse)) in (0..).zip(ABUSES) {
            let kept: Vec<_> = (0..100).filter_map(|number| abuse(socket, number)).collect();
            answers(&headgate, what);
            served(&lab, seed);
            answers(&headgate, what);
            drop(kept);
            answers(&headgate, what);
        }
        let done = long.join().unwrap().success().unwrap();
        assert_eq!(done.sha256, pattern::sha256(3_000_000, 9));
    });
    for line in ["garbage", "STATUS", "", "status now", "\u{7f}", "statu"] {
        let said = ask(socket, format!("{line}\n").as_bytes());
        assert_eq!(said, "{\"error\":\"unknown request; known are: status\"}\n", "{line:?}");
    }
    for request in ["status\n", " status \r\n", "status", "status\nstatus\n"] {
        assert!(ask(socket, request.as_bytes()).starts_with("{\"version\":"), "{request:?}");
    }
    headgate.settle(Duration::from_secs(20)).unwrap();
    headgate.stop(Duration::from_secs(15)).unwrap();
    assert!(!headgate.log().contains("panicked"), "{}", headgate.log());
}

/// Ways to hold up a server: each is done a hundred times at once. What they return stays open.
type Abuse = fn(&Path, u64) -> Option<UnixStream>;
const ABUSES: &[(&str, Abuse)] = &[
    ("silence", |socket, _| UnixStream::connect(socket).ok()),
    ("half a line", |socket, _| said(socket, b"stat")),
    ("a line of a megabyte", |socket, _| said(socket, &vec![b'x'; 1 << 20])),
    ("bytes of all kinds", |socket, number| {
        let mut bytes = vec![0; 200];
        pattern::Pattern::new(number).fill(&mut bytes);
        said(socket, &bytes)
    }),
    ("an answer that nobody reads", |socket, _| said(socket, b"status\n")),
    ("a client that leaves", |socket, _| said(socket, b"status\n").and(None)),
    ("one that has nothing to say", |socket, _| {
        let stream = UnixStream::connect(socket).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        Some(stream)
    }),
];

/// Says something; the server may have closed before the end of it.
fn said(socket: &Path, bytes: &[u8]) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
    let _ = stream.write_all(bytes);
    Some(stream)
}

/// Says something and reads the answer to its end.
fn ask(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// `headgate status` itself gives up after two seconds; one try has to do.
fn answers(headgate: &Headgate, what: &str) {
    let status = headgate.status().unwrap_or_else(|error| panic!("after {what}: {error:#}"));
    assert_eq!(status["state"], "running", "after {what}");
}

/// How `headgate run` ended, and what it wrote.
struct Refusal {
    code: i32,
    text: String,
}

impl Refusal {
    fn one_line(&self) -> &str {
        let line = self.text.trim_end();
        assert!(!line.is_empty() && !line.contains('\n'), "not one line:\n{}", self.text);
        line
    }
}

/// Runs headgate with an admin socket of its own, which it must not get to use.
fn refused(lab: &Lab, config: &str, arguments: &[&str]) -> Refusal {
    let file = lab.directory().join("refused.toml");
    let admin = lab.directory().join("refused.sock");
    fs::write(&file, config.replace("{admin}", admin.to_str().unwrap())).unwrap();
    let binary = headgate_binary();
    let mut line = vec![binary.to_str().unwrap(), "run", "--config", file.to_str().unwrap()];
    line.extend(arguments);
    run_to_the_end(lab, &line.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Runs a command line in the gateway's namespace; of headgate's log only errors are wanted.
fn run_to_the_end(lab: &Lab, line: &[String]) -> Refusal {
    let mut arguments = vec!["RUST_LOG=error"];
    arguments.extend(line.iter().map(String::as_str));
    let mut service = lab.spawn(lab.gateway(), "env", &arguments).unwrap();
    let ended = process::wait_for(SOON, || service.ended().unwrap());
    let text = service.log();
    let status = ended.unwrap_or_else(|| panic!("it was not refused:\n{text}"));
    Refusal { code: status.code().unwrap_or_else(|| panic!("{status}:\n{text}")), text }
}

fn nothing_is_attached(lab: &Lab) {
    let links = process::output(lab.gateway().command("ip").args(["link", "show"])).unwrap();
    assert!(!links.contains("xdp"), "an XDP program is still attached:\n{links}");
    let tables = process::output(lab.gateway().command("nft").args(["list", "tables"])).unwrap();
    assert!(!tables.contains("headgate"), "rules are still there:\n{tables}");
}

fn link(lab: &Lab, nic: &str) -> String {
    process::output(lab.gateway().command("ip").args(["link", "show", "dev", nic])).unwrap()
}

fn config(lab: &Lab) -> String {
    GatewayConfig::new(lab.queues(), four_pairs(8000)).render()
}

fn origin(lab: &Lab) -> Origin {
    let at = [SocketAddr::new(origin4(0), 8000), SocketAddr::new(origin6(0), 8000)];
    Origin::start(lab.origin(), &at, Behaviour::Serve).unwrap()
}

fn get(lab: &Lab, length: u64, seed: u64, arguments: &[&str]) -> Transfer {
    let at = SocketAddr::new(if seed.is_multiple_of(2) { vip4(0) } else { vip6(0) }, 80);
    let url = format!("http://{at}/bytes/{length}?seed={seed}");
    Transfer::with(lab.client(), arguments, &url, Duration::from_secs(15)).unwrap()
}

fn served(lab: &Lab, seed: u64) {
    let transfer = get(lab, 100_000, seed, &[]).success().unwrap();
    assert_eq!(transfer.sha256, pattern::sha256(100_000, seed));
}
