use super::*;

/// What is different about the host, in words and in deed.
type Change = (&'static str, fn(&mut HostFacts));

#[test]
fn a_fitting_host_has_no_complaints() {
    assert_eq!(check_against_host(&config(), &facts()), Ok(Vec::new()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut messages = String::new();
    let changes: &[Change] = &[
        ("no such interface", |facts| facts.interfaces[1].name = "gcx".to_owned()),
        ("not Ethernet", |facts| facts.interfaces[1].mac = None),
        ("another /sys", |facts| facts.interfaces[1].queues = None),
        ("one queue", |facts| facts.interfaces[1].queues = Some(1)),
        ("too many queues", |facts| facts.interfaces[0].queues = Some(100)),
        ("ssh on all addresses, another port", |facts| {
            facts.listeners.push(address("0.0.0.0:8080"))
        }),
        ("a listener on the same address", |facts| {
            facts.listeners.push(address("[2001:db8:1::80]:80"))
        }),
        ("a wildcard listener of IPv6", |facts| facts.listeners.push(address("[::]:80"))),
        ("a listener in the pool", |facts| facts.listeners.push(address("192.0.2.17:30000"))),
        ("a wildcard listener in the pool", |facts| facts.listeners.push(address("0.0.0.0:20000"))),
        ("a local origin", |facts| assert!(facts.local.insert("192.0.2.80".parse().unwrap()))),
        ("all at once", |facts| {
            facts.interfaces.clear();
            facts.listeners.push(address("198.51.100.80:80"));
            facts.listeners.push(address("192.0.2.16:59999"));
        }),
    ];
    for (name, change) in changes {
        let mut facts = facts();
        change(&mut facts);
        let errors = check_against_host(&config(), &facts).expect_err(name);
        messages += &format!("{name}\n");
        messages.extend(errors.iter().map(|error| format!("    {error}\n")));
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn what_may_be_amiss_is_a_warning() {
    let mut messages = String::new();
    let changes: &[Change] = &[
        ("down", |facts| facts.interfaces[0].up = false),
        ("ephemeral ports", |facts| facts.reserved_ports.clear()),
        ("ephemeral ports, some reserved", |facts| {
            facts.reserved_ports = vec![PortRange::new(32_768, 50_000).unwrap()];
        }),
        ("not local", |facts| facts.local.clear()),
        ("a listener of both families, perhaps", |facts| {
            facts.listeners.push(address("[::]:8080"))
        }),
        ("the same in the pool", |facts| {
            facts.local.remove(&"2001:db8:2::10".parse().unwrap());
            facts.listeners.push(address("[::]:30000"));
        }),
        ("management", |facts| facts.listeners.push(address("0.0.0.0:22"))),
    ];
    for (name, change) in changes {
        let mut facts = facts();
        change(&mut facts);
        let warnings = check_against_host(&config(), &facts).expect(name);
        assert!(!warnings.is_empty(), "{name}");
        messages += &format!("{name}\n");
        messages.extend(warnings.iter().map(|warning| format!("    {warning}\n")));
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn listeners_elsewhere_do_not_matter() {
    let mut facts = facts();
    for listener in
        ["127.0.0.1:80", "198.51.100.1:80", "192.0.2.1:30000", "0.0.0.0:19999", "0.0.0.0:22"]
    {
        facts.listeners.push(address(listener));
    }
    let config =
        Config::parse(&CONFIG.replace(":22", ":23").replace("allow-management = true", ""))
            .unwrap();
    assert_eq!(check_against_host(&config, &facts), Ok(Vec::new()));
    // A wildcard listener loses nothing where the kernel would not have given it the packets anyway.
    facts.local.remove(&"198.51.100.80".parse().unwrap());
    facts.listeners.push(address("0.0.0.0:80"));
    assert!(check_against_host(&config, &facts).is_ok());
}

#[test]
fn this_host_can_be_read() {
    let facts = HostFacts::read().unwrap();
    let loopback = facts.interface("lo").unwrap();
    assert_eq!((loopback.index, loopback.mac), (1, None));
    assert_eq!(loopback.queues, Some(1));
    assert!(facts.local_ports.is_some());
}

fn config() -> Config {
    Config::parse(CONFIG).unwrap()
}

fn facts() -> HostFacts {
    let interface = |index: u32, name: &str| Interface {
        name: name.to_owned(),
        index,
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        queues: Some(2),
        up: true,
    };
    let local = ["198.51.100.80", "2001:db8:1::80", "192.0.2.16", "192.0.2.17", "2001:db8:2::10"];
    HostFacts {
        interfaces: vec![interface(2, "go"), interface(3, "gc")],
        local: local.map(|address| address.parse().unwrap()).into(),
        listeners: vec![address("127.0.0.1:25"), address("[::1]:25")],
        local_ports: PortRange::new(32_768, 60_999),
        reserved_ports: vec![PortRange::new(20_000, 59_999).unwrap()],
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const CONFIG: &str = r#"
[nic.gc]
queues = 2
[nic.go]
[pool.main]
addresses = ["192.0.2.16-192.0.2.17", "2001:db8:2::10"]
[origin.web]
addresses = ["192.0.2.80:80", "[2001:db8:2::80]:80"]
[service.web]
mode = "tcp"
listen = ["198.51.100.80:80", "198.51.100.80:8080", "[2001:db8:1::80]:80"]
origin = "web"
pool = "main"
[service.ssh]
mode = "tcp"
listen = "198.51.100.80:22"
origin = "web"
pool = "main"
allow-management = true
"#;
