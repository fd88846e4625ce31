//! The `headgate` program as an operator meets it: exit codes, and messages of one line each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit code of a bad configuration or command line.
const BAD_CONFIG: i32 = 2;
/// Exit code of everything else that failed.
const FAILED: i32 = 1;

const GOOD: &str = r#"[gateway]
admin = "/run/headgate/test.sock"

[nic.eth0]
ring = 2048

[pool.main]
addresses = ["192.0.2.16-192.0.2.31"]
ports = "20000-59999"

[pool.other]
addresses = ["203.0.113.16"]

[origin.web]
addresses = ["192.0.2.80:80"]

[service.web]
mode = "tcp"
listen = ["198.51.100.80:80"]
origin = "web"
pool = "main"
"#;

/// A change to the good file; where the message says the fault is; what it says that is; what to do.
const MISTAKES: &[(&str, &str, &str, &str, &str)] = &[
    (
        "ring = 2048",
        "rnig = 2048",
        "5:1",
        "unknown key `rnig` in [nic.eth0]",
        "did you mean `ring`?",
    ),
    ("ring = 2048", "ring = 1000", "5:8", "`ring = 1000` is not a power of two", "use 1024"),
    ("ring = 2048", "ring = 2", "5:8", "`ring` is 2", "choose between"),
    ("[nic.eth0]", "[nic.eth0", "4:10", "", "fix the TOML syntax here first"),
    ("[gateway]", "[gatewya]", "1:", "unknown key `gatewya`", "did you mean `gateway`?"),
    (
        "203.0.113.16",
        "192.0.2.31",
        "12:14",
        "192.0.2.31 is in [pool.main] already",
        "an address belongs to exactly one pool",
    ),
    (
        "192.0.2.80:80",
        "[2001:db8:2::80]:80",
        "17:",
        "[service.web] reaches [origin.web] over IPv6, but [pool.main] has no IPv6 address",
        "add one to the pool",
    ),
    (
        "198.51.100.80:80",
        "198.51.100.80:22",
        "19:11",
        "198.51.100.80:22 is the ssh port",
        "choose another port",
    ),
    (
        "origin = \"web\"",
        "origin = \"wbe\"",
        "20:10",
        "origin `wbe` is not defined",
        "did you mean",
    ),
    ("198.51.100.80:80", "198.51.100.80", "19:11", "198.51.100.80", "write"),
    ("mode = \"tcp\"", "mode = 7", "18:8", "`mode` is a number", "write"),
    ("ports = \"20000-59999\"", "ports = \"9-1\"", "9:9", "9-1", "write FIRST-LAST"),
];

#[test]
fn a_good_file_is_good() {
    let file = write("good.toml", GOOD.as_bytes());
    let told = headgate(&["check", text(&file)]);
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    assert_eq!(
        told.out,
        format!("{}: good (1 services, 1 origins, 2 pools, 1 NICs)\n", file.display())
    );
}

#[test]
fn a_mistake_is_one_line_with_its_place_and_a_remedy() {
    for (number, (from, to, place, what, remedy)) in MISTAKES.iter().enumerate() {
        assert!(GOOD.contains(from), "{from} is not in the good file");
        let bad = GOOD.replacen(from, to, 1);
        let file = write(&format!("mistake-{number}.toml"), bad.as_bytes());
        // `run` refuses it with the same words, before it touches anything.
        for arguments in [&["check", text(&file)][..], &["run", "--config", text(&file)]] {
            let told = headgate(arguments);
            assert_eq!((told.code, told.out.as_str()), (BAD_CONFIG, ""), "{to}: {}", told.err);
            let line = told.one_line();
            let start = format!("{}:{place}", file.display());
            assert!(line.starts_with(&start), "{line}\nis not at {place}");
            let (said, advice) = line.rsplit_once("; ").unwrap_or((line, ""));
            assert!(said.contains(what), "{line}\ndoes not say {what}");
            assert!(line.contains(remedy) && !advice.is_empty(), "{line}\nadvises no {remedy}");
        }
    }
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let bad = GOOD.replace("ring = 2048", "rnig = 2048").replace("= \"main\"", "= \"mian\"");
    let file = write("two-mistakes.toml", bad.as_bytes());
    let told = headgate(&["check", text(&file)]);
    assert_eq!(told.code, BAD_CONFIG);
    let places: Vec<_> = told.err.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, [format!("{}:5:1", file.display()), format!("{}:21:8", file.display())]);
}

#[test]
fn a_file_that_is_no_configuration_is_one_line_with_a_remedy() {
    let folder = folder();
    let huge = folder.join("huge.toml");
    // Sparse: it takes no room on the disk.
    File::create(&huge).unwrap().set_len((64 << 20) + 1).unwrap();
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let deep = format!("a = {}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let wide = format!("[gateway]\nadmin = \"{}\"", "x".repeat(1 << 20));
    for (file, what) in [
        (folder.join("missing.toml"), "No such file"),
        (folder.clone(), "directory"),
        (huge, "larger than 64 MiB"),
        (write("latin-1.toml", b"[gateway]\n# caf\xe9\n"), "not UTF-8"),
        (write("binary.toml", &binary), "not UTF-8"),
        (write("empty.toml", b""), "there is no [nic.NAME] section"),
        (write("nul.toml", b"[gateway]\0"), "fix the TOML syntax"),
        (write("deep.toml", deep.as_bytes()), "fix the TOML syntax"),
        (write("wide.toml", wide.as_bytes()), "`admin`"),
        (PathBuf::from("/dev/zero"), "larger than 64 MiB"),
        (PathBuf::from("/proc/self/mem"), "cannot read"),
    ] {
        let told = headgate(&["check", text(&file)]);
        let start: String = told.err.chars().take(400).collect();
        assert_eq!((told.code, told.out.as_str()), (BAD_CONFIG, ""), "{start}");
        for line in told.err.lines() {
            assert!(line.starts_with(text(&file)), "{start}\ndoes not name {}", file.display());
            assert!(line.contains("; "), "{start}\nhas no remedy");
            assert!(line.len() < 1000, "a line of {} bytes: {start}", line.len());
        }
        assert!(told.err.contains(what), "{start}\ndoes not say {what}");
    }
}

#[test]
fn names_in_a_file_cannot_speak_to_the_terminal() {
    let bad = format!("\"\\u001b[2J\\nheadgate: good\" = 1\n{GOOD}");
    let told = headgate(&["check", text(&write("escape.toml", bad.as_bytes()))]);
    assert_eq!(told.code, BAD_CONFIG);
    let line = told.one_line();
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

#[test]
fn the_command_line_explains_itself() {
    let told = headgate(&["--help"]);
    assert_eq!((told.code, told.err.as_str()), (0, ""));
    for part in ["check", "run", "status", "Exit codes: 0 done; 1 failed; 2 "] {
        assert!(told.out.contains(part), "{part} is missing:\n{}", told.out);
    }
    let told = headgate(&["--version"]);
    assert_eq!((told.code, told.out.trim()), (0, concat!("headgate ", env!("CARGO_PKG_VERSION"))));
    for bad in [
        &["serve"][..],
        &[],
        &["check"],
        &["check", "a", "b"],
        &["run", "--port", "carrier-pigeon"],
        &["run", "--log", "xml"],
        &["status", "--jsno"],
    ] {
        let told = headgate(bad);
        assert_eq!((told.code, told.out.as_str()), (BAD_CONFIG, ""), "{bad:?}");
        assert!(
            told.err.contains("--help") || told.err.contains("Usage: "),
            "{bad:?}: {}",
            told.err
        );
    }
}

#[test]
fn asking_a_gateway_that_does_not_run_tells_what_to_look_for() {
    let stale = folder().join("stale.sock");
    let _ = fs::remove_file(&stale);
    drop(UnixListener::bind(&stale).unwrap());
    let plain = write("plain.sock", b"");
    for socket in [folder().join("missing.sock"), stale, plain] {
        let told = headgate(&["status", "--socket", text(&socket)]);
        assert_eq!((told.code, told.out.as_str()), (FAILED, ""), "{}", told.err);
        let line = told.one_line();
        assert!(line.starts_with("headgate: cannot ask headgate at "), "{line}");
        assert!(
            line.contains(text(&socket)) && line.contains("is it running? see --socket"),
            "{line}"
        );
    }
}

#[test]
fn asking_somebody_else_than_a_gateway_ends_with_a_message() {
    for (name, answer, what) in [
        ("silent", None, "no answer within 2s"),
        ("mute", Some(&b""[..]), "cannot read the answer"),
        ("chatty", Some(b"220 mail.example ESMTP\n"), "cannot read the answer"),
        ("binary", Some(b"\xff\xfe\n"), "cannot ask headgate"),
        ("other", Some(b"{\"error\":\"unknown request\"}\n"), "does it run another version?"),
    ] {
        let socket = folder().join(format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let told = std::thread::scope(|scope| {
            let asked = scope.spawn(|| headgate(&["status", "--socket", text(&socket)]));
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 7];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"status\n");
            match answer {
                Some(bytes) => {
                    stream.write_all(bytes).unwrap();
                    drop(stream);
                    asked.join().unwrap()
                }
                // The connection stays open until it gives up.
                None => asked.join().unwrap(),
            }
        });
        assert_eq!((told.code, told.out.as_str()), (FAILED, ""), "{name}: {}", told.err);
        assert!(told.one_line().contains(what), "{name}: {}", told.err);
    }
}

/// How the program ended, and what it wrote.
struct Told {
    code: i32,
    out: String,
    err: String,
}

impl Told {
    /// The only line of its standard error.
    fn one_line(&self) -> &str {
        let line = self.err.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {:?}", self.err));
        assert!(!line.contains('\n') && !line.is_empty(), "not one line: {:?}", self.err);
        line
    }
}

/// Runs the program to its end.
fn headgate(arguments: &[&str]) -> Told {
    let output = Command::new(env!("CARGO_BIN_EXE_headgate"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Told {
        code: output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {}", output.status)),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn write(name: &str, contents: &[u8]) -> PathBuf {
    let file = folder().join(name);
    fs::write(&file, contents).unwrap();
    file
}

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
