use proptest::prelude::*;

use super::*;

#[test]
fn a_full_configuration_is_read_as_written() {
    let config = parse(GOOD);
    assert_eq!(config.gateway.admin, PathBuf::from("/run/headgate/admin.sock"));
    assert_eq!(config.gateway.drain, Duration::from_secs(10));
    assert_eq!(config.gateway.heartbeat_limit, Duration::from_millis(500));
    assert_eq!(config.tcp.receive_buffer, 65_535);
    assert_eq!(config.tcp.send_buffer, 128 << 10);
    assert_eq!(config.tcp.idle, Duration::from_secs(300));
    let names: Vec<_> = config.nics.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(names, ["go", "gc"], "in the order of the file");
    assert_eq!((config.nics[0].frames, config.nics[0].ring), (8192, 4096));
    assert_eq!(config.nics[0].checksums, Checksums::Trust);
    assert_eq!(config.nics[1].queues, Some(2));
    assert_eq!(config.nics[1].attach, Attach::Generic);
    let pool = &config.pools[0];
    assert_eq!(pool.addresses.len(), 4 + 4 + 4);
    assert_eq!(pool.addresses[3], "192.0.2.19".parse::<IpAddr>().unwrap());
    assert_eq!(pool.ports, PortRange::new(20000, 59999).unwrap());
    assert_eq!(pool.method, Method::RoundRobin);
    let service = &config.services[0];
    assert_eq!(service.listen[1].address, "[2001:db8:1::80]:80".parse().unwrap());
    assert_eq!(service.listen[1].place, Place { line: 37, column: 32 });
    assert_eq!(config.origins[service.origin].name, "web");
    assert_eq!(config.origins[service.origin].proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(service.on_dead, OnDead::Drop);
    assert_eq!(config.blocked.len(), 3);
}

#[test]
fn what_is_not_said_has_defaults() {
    let config = parse(SMALL);
    assert_eq!(config.gateway.admin, PathBuf::from("/run/headgate/admin.sock"));
    assert_eq!((config.nics[0].frames, config.nics[0].ring), (4096, 2048));
    assert_eq!(config.nics[0].queues, None);
    assert_eq!(config.pools[0].ports, PortRange::DEFAULT);
    assert_eq!(config.pools[0].method, Method::Hash);
    assert_eq!(config.origins[0].family, Families::Any);
    assert_eq!(config.services[0].on_dead, OnDead::Drop);
    assert_eq!(config.tcp.time_wait, Duration::from_secs(60));
}

#[test]
fn the_example_for_operators_is_valid() {
    parse(include_str!("../../../scripts/headgate.toml"));
}

#[test]
fn a_large_ring_brings_its_frames() {
    let config = parse(&SMALL.replace("[nic.eth0]", "[nic.eth0]\nring = 4096"));
    assert_eq!(config.nics[0].frames, 8192);
}

/// Each change to a good configuration, and the messages it causes.
#[test]
fn every_mistake_has_one_clear_line() {
    let mut messages = String::new();
    for (from, to) in MISTAKES {
        assert!(GOOD.contains(from), "{from:?} is not in the good configuration");
        let errors = Config::parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        messages += &format!("{}\n", to.replace('\n', "\\n"));
        for error in errors {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line:?} is more than a line");
            messages += &format!("    {line}\n");
        }
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let mut text = GOOD.to_owned();
    for (from, to) in
        [("drain", "drian"), ("4096", "4097"), ("\"hash", "\"hsah"), ("\"web\"", "\"wbe\"")]
    {
        text = text.replace(from, to);
    }
    let errors = Config::parse(&text).unwrap_err();
    let lines: Vec<_> = errors.iter().map(|error| error.place.line).collect();
    assert!(errors.len() >= 3 && lines.is_sorted(), "{errors:?}");
    insta::assert_snapshot!(lines_of(&errors));
}

#[test]
fn an_empty_file_says_what_it_needs() {
    insta::assert_snapshot!(lines_of(&Config::parse("").unwrap_err()), @r"
    headgate.toml: there is no [nic.NAME] section; add at least one
    headgate.toml: there is no [service.NAME] section; add at least one
    ");
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let absent = Config::load("/nonexistent/headgate.toml").unwrap_err();
    assert!(
        absent[0].to_string().starts_with("/nonexistent/headgate.toml: cannot read"),
        "{absent:?}"
    );
    let endless = Config::load("/dev/zero").unwrap_err();
    assert!(endless[0].to_string().contains("larger than 64 MiB"), "{endless:?}");
    assert!(Config::load("/").is_err());
}

#[test]
fn lists_are_bounded() {
    let pool = |addresses: &str| GOOD.replacen("\"192.0.2.16-192.0.2.19\"", addresses, 1);
    for huge in ["\"10.0.0.0/8\"", "\"2001:db8::/32\"", "\"1::-2::\"", "\"10.0.0.0/16\""] {
        let errors = Config::parse(&pool(huge)).unwrap_err();
        assert!(matches!(errors[0].problem, Problem::TooManyAddresses { .. }), "{errors:?}");
    }
    let listens: Vec<_> =
        (0..=MAX_LISTENS).map(|n| format!("\"198.51.100.7:{}\"", n + 1024)).collect();
    let errors =
        Config::parse(&GOOD.replacen("\"198.51.100.80:80\"", &listens.join(","), 1)).unwrap_err();
    assert!(
        errors.iter().any(|error| matches!(error.problem, Problem::TooMany { .. })),
        "{errors:?}"
    );
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,400}") {
        let _ = Config::parse(&text);
    }

    #[test]
    fn toml_like_text_never_panics(
        lines in prop::collection::vec(("[a-z.\\[\\]\"= 0-9:/-]{0,30}", 0usize..60), 0..30),
    ) {
        let good: Vec<&str> = GOOD.lines().collect();
        let text: Vec<_> = lines.iter().map(|(line, n)| good.get(*n).copied().unwrap_or(line)).collect();
        let _ = Config::parse(&text.join("\n"));
    }

    #[test]
    fn a_mutated_configuration_is_read_or_refused_in_place(
        changes in prop::collection::vec((0..GOOD.len(), 0usize..8, "[ -~é]{0,6}"), 1..6),
    ) {
        let mut text = GOOD.to_owned();
        for (at, removed, inserted) in changes {
            let at = text.floor_char_boundary(at.min(text.len()));
            let end = text.floor_char_boundary((at + removed).min(text.len())).max(at);
            text.replace_range(at..end, &inserted);
        }
        match Config::parse(&text) {
            Ok(config) => {
                prop_assert!(config.services.iter().all(|s| s.origin < config.origins.len()));
                prop_assert!(config.services.iter().all(|s| s.pool < config.pools.len()));
                prop_assert!(config.nics.iter().all(|n| n.frames >= 2 * n.ring && n.ring.is_power_of_two()));
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                let lines = text.lines().count() as u32 + 1;
                for error in errors {
                    prop_assert!(error.place.line <= lines);
                    prop_assert!(!error.to_string().contains('\n'), "{}", error);
                }
            }
        }
    }
}

#[track_caller]
fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|errors| panic!("{}", lines_of(&errors)))
}

fn lines_of(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("{error}\n")).collect()
}

const SMALL: &str = r#"
[nic.eth0]
[pool.main]
addresses = "192.0.2.16"
[origin.web]
addresses = "192.0.2.80:80"
[service.web]
mode = "tcp"
listen = "198.51.100.80:80"
origin = "web"
pool = "main"
"#;

const GOOD: &str = r#"[gateway]
admin = "/run/headgate/admin.sock"
drain = "10s"
heartbeat-limit = "500ms"

[tcp]
receive-buffer = 65535
send-buffer = "128KiB"
idle = "5m"

[nic.go]
ring = 4096
frames = 8192
checksums = "trust"

[nic.gc]
attach = "generic"
bind = "copy"
queues = 2

[pool.main]
addresses = ["192.0.2.16-192.0.2.19", "2001:db8:2::10-2001:db8:2::13", "203.0.113.4/30"]
ports = "20000-59999"
method = "round-robin"

[pool.v4]
addresses = "203.0.113.9"
method = "hash"

[origin.web]
addresses = ["192.0.2.80:80", "[2001:db8:2::80]:80"]
family = "any"
proxy-protocol = "v2"

[service.web]
mode = "tcp"
listen = ["198.51.100.80:80",  "[2001:db8:1::80]:80"]
origin = "web"
pool = "main"
on-dead = "drop"

[service.alt]
mode = "tcp"
listen = ["198.51.100.81:8080"]
origin = "web"
pool = "main"

[block]
prefixes = ["203.0.113.128/25", "2001:db8:bad::/48", "198.51.100.66"]
"#;

const MISTAKES: &[(&str, &str)] = &[
    ("[gateway]", "[gateway"),
    ("drain = \"10s\"", "drain = 10s"),
    ("drain = \"10s\"", "drain = \"10s\"\ndrain = \"11s\""),
    ("admin = \"", "admin = \"relative"),
    ("drain", "drian"),
    ("drain", "colour"),
    ("[block]", "[blok]"),
    ("[gateway]", "\"wor\\nkers\\u001b\" = 4\n[gateway]"),
    ("[gateway]", "workers = 4\n[gateway]"),
    ("[gateway]", "nic = 4\n[gateway]\n#"),
    ("drain = \"10s\"", "drain = 10"),
    ("drain = \"10s\"", "drain = \"10 parsecs\""),
    ("drain = \"10s\"", "drain = \"2h\""),
    ("heartbeat-limit = \"500ms\"", "heartbeat-limit = \"1ms\""),
    ("receive-buffer = 65535", "receive-buffer = 65536"),
    ("receive-buffer = 65535", "receive-buffer = \"64KiB\""),
    ("receive-buffer = 65535", "receive-buffer = \"lots\""),
    ("receive-buffer = 65535", "receive-buffer = -1"),
    ("[nic.gc]", "[nic.\"a/b\"]"),
    ("[nic.gc]", "[nic.averyveryverylongname]"),
    ("attach = \"generic\"", "attach = \"genric\""),
    ("bind = \"copy\"", "bind = \"magic\""),
    ("queues = 2", "queues = 0"),
    ("queues = 2", "queues = \"all\""),
    ("queues = 2", "queues = 2.5"),
    ("ring = 4096", "ring = 1000"),
    ("ring = 4096", "ring = 32"),
    ("frames = 8192", "frames = 4096"),
    ("checksums = \"trust\"", "checksums = \"skip\""),
    ("192.0.2.16-192.0.2.19", "192.0.2.19-192.0.2.16"),
    ("192.0.2.16-192.0.2.19", "192.0.2.16-2001:db8::1"),
    ("192.0.2.16-192.0.2.19", "192.0.2.16/28x"),
    ("192.0.2.16-192.0.2.19", "192.0.2.19/28"),
    ("192.0.2.16-192.0.2.19", "10.0.0.0/8"),
    ("192.0.2.16-192.0.2.19", "0.0.0.0"),
    ("192.0.2.16-192.0.2.19", "223.255.255.254-224.0.0.1"),
    ("192.0.2.16-192.0.2.19", "127.0.0.1"),
    ("192.0.2.16-192.0.2.19", "::ffff:192.0.2.1"),
    ("\"192.0.2.16-192.0.2.19\"", "\"192.0.2.16\", \"192.0.2.16\""),
    ("addresses = \"203.0.113.9\"", "addresses = [\"203.0.113.0/24\"]"),
    ("addresses = \"203.0.113.9\"", "addresses = []"),
    ("addresses = \"203.0.113.9\"", "addresses = [9]"),
    ("addresses = \"203.0.113.9\"", ""),
    ("ports = \"20000-59999\"", "ports = \"80-90\""),
    ("ports = \"20000-59999\"", "ports = \"59999-20000\""),
    ("ports = \"20000-59999\"", "ports = \"20000-70000\""),
    ("ports = \"20000-59999\"", "ports = 20000"),
    ("method = \"hash\"", "method = \"least-used\""),
    ("[pool.v4]", "[pool.\"v 4\"]"),
    ("\"192.0.2.80:80\"", "\"192.0.2.80\""),
    ("\"192.0.2.80:80\"", "\"example.com:80\""),
    ("\"192.0.2.80:80\"", "\"192.0.2.80:0\""),
    ("\"192.0.2.80:80\"", "\"239.1.1.1:80\""),
    ("\"192.0.2.80:80\"", "\"127.0.0.1:80\""),
    ("\"192.0.2.80:80\"", "\"[fe80::1]:80\""),
    ("\"192.0.2.80:80\"", "\"198.51.100.80:80\""),
    ("\"192.0.2.80:80\"", "\"192.0.2.17:80\""),
    ("\"192.0.2.80:80\"", "\"203.0.113.200:80\""),
    (", \"[2001:db8:2::80]:80\"]\nfamily = \"any\"", "]\nfamily = \"v6\""),
    (", \"[2001:db8:2::80]:80\"]\nfamily = \"any\"", "]\nfamily = \"client\""),
    ("family = \"any\"", "family = \"v5\""),
    ("proxy-protocol = \"v2\"", "proxy-protocol = \"v3\""),
    ("mode = \"tcp\"", "mode = \"tpc\""),
    ("mode = \"tcp\"", ""),
    ("198.51.100.80:80", "0.0.0.0:80"),
    ("198.51.100.80:80", "198.51.100.80"),
    ("198.51.100.80:80", "198.51.100.80:22"),
    ("198.51.100.81:8080", "198.51.100.80:80"),
    ("198.51.100.81:8080", "192.0.2.17:20000"),
    ("listen = [\"198.51.100.81:8080\"]", "listen = []"),
    ("origin = \"web\"", "origin = \"wbe\""),
    ("origin = \"web\"", "origin = \"nothing\""),
    ("origin = \"web\"", ""),
    ("pool = \"main\"", "pool = \"mian\""),
    ("pool = \"main\"", "pool = \"v4\""),
    ("on-dead = \"drop\"", "on-dead = \"explode\""),
    ("on-dead = \"drop\"", "allow-management = \"yes\""),
    ("203.0.113.128/25", "203.0.113.129/25"),
    ("203.0.113.128/25", "0.0.0.0/0"),
    ("203.0.113.128/25", "everybody"),
];
