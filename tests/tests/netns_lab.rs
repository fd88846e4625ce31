//! The laboratory itself, without headgate: what fails here is not headgate's fault.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::lab::address::{DIRECT_CLIENT, DIRECT_ORIGIN, GATEWAY_ORIGIN_SIDE, origin4, vip4, vip6};
use xtask::lab::{
    self, Behaviour, Lab, LabConfig, NginxConfig, Origin, Service, Transfer, pattern,
};
use xtask::process;

const PATIENCE: Duration = Duration::from_secs(30);
const HOLD: &str = "HEADGATE_TEST_HOLDS_A_LAB";

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn two_labs_stand_side_by_side_and_carry_transfers() {
    let [one, two] = [1, 4].map(|queues| {
        let lab = Lab::new(&LabConfig { queues, ..LabConfig::default() }).unwrap();
        let nginx = lab.nginx(&NginxConfig {
            files: vec![("file".to_owned(), 300_000, u64::from(queues))],
            ..NginxConfig::default()
        });
        let proxy = haproxy(&lab);
        (lab, nginx.unwrap(), proxy)
    });
    for (lab, nginx, _proxy) in [one, two] {
        let queues = lab.queues();
        for vip in [vip4(0), vip6(0)] {
            let at = SocketAddr::new(vip, 80);
            let got = Transfer::get(lab.client(), &format!("http://{at}/file?{at}"), PATIENCE);
            let got = got.unwrap().success().unwrap();
            assert_eq!(got.sha256, pattern::sha256(300_000, queues.into()));
            assert_eq!(got.remote, Some(at));
            let line = nginx.logged(&format!("/file?{at}")).unwrap();
            assert_eq!(line.remote, GATEWAY_ORIGIN_SIDE[0]);

            let file = lab.directory().join("to-upload");
            pattern::write_file(&file, 200_000, 7).unwrap();
            let put =
                Transfer::put(lab.client(), &file, &format!("http://{at}/upload/x"), PATIENCE);
            put.unwrap().success().unwrap();
            assert_eq!(nginx.upload_sha256("x").unwrap(), pattern::sha256(200_000, 7));
            nginx.remove_upload("x").unwrap();
        }
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn origins_behave_as_told() {
    let lab = Lab::new(&LabConfig { direct: true, ..LabConfig::default() }).unwrap();
    let at = SocketAddr::new(DIRECT_ORIGIN, 8000);
    let url = format!("http://{at}/bytes/400000?seed=2");
    // Exit codes as curl(1) lists them.
    for (behaviour, exit, length) in [
        (Behaviour::Serve, 0, 400_000..=400_000),
        (Behaviour::CloseAfter(100_000), 18, 100_000..=100_000),
        (Behaviour::ResetAfter(100_000), 56, 0..=100_000),
        (Behaviour::Silent, 28, 0..=0),
        (Behaviour::ResetAtOnce, 56, 0..=0),
    ] {
        let origin = Origin::start(lab.origin(), &[at], behaviour).unwrap();
        let got = Transfer::get(lab.client(), &url, Duration::from_secs(2)).unwrap();
        assert_eq!(got.exit, exit, "{behaviour:?}: {got:?}");
        assert!(length.contains(&got.length), "{behaviour:?}: {got:?}");
        assert_eq!(origin.accepted(), 1);
        assert_eq!(origin.peers()[0].ip(), DIRECT_CLIENT);
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn a_lab_goes_with_its_process() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut holder, name) = holder();
        assert!(lab::namespaces(&name).iter().all(lab::Namespace::exists));
        kill(Pid::from_raw(holder.id().cast_signed()), signal).unwrap();
        assert_eq!(holder.wait().unwrap().code(), Some(128 + signal as i32));
        assert_gone(&name);
    }
}

#[test]
#[ignore = "needs root: builds a network of namespaces"]
fn what_a_killed_process_left_is_swept_up() {
    let (mut holder, name) = holder();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(lab::names().unwrap().contains(&name), "SIGKILL leaves no time to tidy up");
    assert!(lab::sweep().contains(&name));
    assert_gone(&name);
    assert!(!lab::remove(&name).unwrap());
}

/// Not a test of its own: the process that the tests above start and signal.
#[test]
#[ignore = "needs root: holds a lab when another test asks for it"]
fn hold() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let _nginx = lab.nginx(&NginxConfig::default()).unwrap();
    println!("lab:{}", lab.name());
    process::wait_for(Duration::from_secs(60), || None::<()>);
}

fn holder() -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "hold"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The test harness writes "test hold ... " before it, on the same line.
    let name =
        lines.map(Result::unwrap).find_map(|line| Some(line.split_once("lab:")?.1.to_owned()));
    (child, name.unwrap())
}

fn assert_gone(name: &str) {
    assert!(!lab::names().unwrap().contains(&name.to_owned()));
    for namespace in lab::namespaces(name) {
        assert!(!namespace.exists(), "{} is still there", namespace.name());
    }
    assert!(!std::env::temp_dir().join(format!("headgate-lab-{name}")).exists());
}

/// HAProxy from the first VIP of each family, port 80, to the origin's first address.
fn haproxy(lab: &Lab) -> Service {
    let file = lab.directory().join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         listen web\n  bind {}:80\n  bind {}:80\n  server origin {}:80\n",
        vip4(0),
        vip6(0),
        origin4(0)
    );
    std::fs::write(&file, text).unwrap();
    let service =
        lab.spawn(lab.gateway(), "haproxy", &["-db", "-f", &file.to_string_lossy()]).unwrap();
    let at = SocketAddr::new(vip6(0), 80);
    let up = || lab.client().enter(|| std::net::TcpStream::connect(at)).unwrap().ok();
    assert!(process::wait_for(Duration::from_secs(5), up).is_some(), "{}", service.log());
    service
}
