//! Reads each kind of section into its value.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeTable;

use super::check;
use super::problem::{ConfigError, Problem};
use super::text::{Reader, Section, Text};
use super::value::{self, AddressError};
use super::*;

/// What was read so far. A section with errors is kept as far as it goes, and marked, so that names resolve but
/// what follows from its errors is not reported as well.
#[derive(Debug)]
pub(super) struct Draft<'t> {
    pub(super) pools: Vec<Sound<Pool>>,
    pub(super) origins: Vec<Sound<Origin>>,
    pub(super) services: Vec<Sound<DraftService<'t>>>,
    pub(super) blocked: Vec<IpNet>,
}

#[derive(Debug)]
pub(super) struct Sound<T> {
    pub(super) value: T,
    pub(super) sound: bool,
}

/// A service whose names are not resolved.
#[derive(Debug)]
pub(super) struct DraftService<'t> {
    pub(super) service: Service,
    pub(super) origin: Option<Text<'t>>,
    pub(super) pool: Option<Text<'t>>,
}

pub(super) fn read(file: &str, text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut reader = Reader::new(file, text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        reader.report(&error.span().unwrap_or(0..0), Problem::Syntax(message));
    }
    if syntax_errors.is_empty() {
        read_document(&mut reader, file, document.get_ref())
    } else {
        None
    }
    .filter(|_| reader.errors.is_empty())
    .ok_or_else(|| {
        reader.errors.sort_by_key(|error| error.place);
        reader.errors.dedup();
        reader.errors
    })
}

fn read_document<'t>(
    reader: &mut Reader<'t>,
    file: &str,
    document: &'t DeTable<'t>,
) -> Option<Config> {
    let mut root = Section::root(document);
    let gateway = gateway(reader, &mut root);
    let tcp = tcp(reader, &mut root);
    let nics = nics(reader, &mut root);
    let mut draft = Draft {
        pools: pools(reader, &mut root),
        origins: origins(reader, &mut root),
        services: services(reader, &mut root),
        blocked: blocked(reader, &mut root),
    };
    reader.finish(root);
    if nics.is_empty() {
        reader.report_at(Place::default(), Problem::MissingSection { kind: "nic" });
    }
    if draft.services.is_empty() {
        reader.report_at(Place::default(), Problem::MissingSection { kind: "service" });
    }
    let resolved = check::resolve(reader, &mut draft);
    check::check(reader, &draft);
    resolved.then(|| Config {
        file: file.to_owned(),
        gateway,
        tcp,
        nics,
        pools: draft.pools.into_iter().map(|pool| pool.value).collect(),
        origins: draft.origins.into_iter().map(|origin| origin.value).collect(),
        services: draft.services.into_iter().map(|service| service.value.service).collect(),
        blocked: draft.blocked,
    })
}

fn gateway<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Gateway {
    let mut section = reader.section(root, "gateway");
    let admin = reader.text(&mut section, "admin").and_then(|Text { text, span }| {
        let fits = text.starts_with('/') && text.len() <= MAX_SOCKET_PATH && !text.contains('\0');
        if !fits {
            reader.bad_value("admin", text, &span, "an absolute path of at most 107 bytes");
        }
        fits.then(|| PathBuf::from(text))
    });
    let drain = reader.duration(&mut section, "drain", Duration::ZERO..=hours(1));
    let heartbeat_limit =
        reader.duration(&mut section, "heartbeat-limit", Duration::from_millis(50)..=minutes(1));
    reader.finish(section);
    Gateway {
        admin: admin.unwrap_or_else(|| PathBuf::from("/run/headgate/admin.sock")),
        drain: drain.unwrap_or(Duration::from_secs(10)),
        heartbeat_limit: heartbeat_limit.unwrap_or(Duration::from_millis(500)),
    }
}

fn tcp<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Tcp {
    let mut section = reader.section(root, "tcp");
    let second = Duration::from_secs(1);
    let mut buffer = |key, most| reader.size(&mut section, key, 2_048..=most);
    let receive_buffer = buffer("receive-buffer", 65_535).unwrap_or(65_535);
    let send_buffer = buffer("send-buffer", 1 << 20).unwrap_or(128 << 10);
    let mut count = |key| reader.number(&mut section, key, 2..=1 << 24).map(|n| n as usize);
    let max_connections = count("max-connections").unwrap_or(16_384);
    let max_half_open = count("max-half-open").unwrap_or(65_536);
    let mut timeout = |key, most| reader.duration(&mut section, key, second..=most);
    let tcp = Tcp {
        receive_buffer,
        send_buffer,
        max_connections,
        max_half_open,
        idle: timeout("idle", hours(24 * 30)).unwrap_or(minutes(10)),
        handshake: timeout("handshake", minutes(5)).unwrap_or(10 * second),
        fin_wait: timeout("fin-wait", hours(1)).unwrap_or(minutes(10)),
        time_wait: timeout("time-wait", minutes(10)).unwrap_or(minutes(1)),
    };
    reader.finish(section);
    tcp
}

fn nics<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<Nic> {
    let sections = reader.named_sections(root, "nic");
    sections.into_iter().map(|section| nic(reader, section)).collect()
}

fn nic<'t>(reader: &mut Reader<'t>, mut section: Section<'t>) -> Nic {
    let name = section.name.clone();
    // The kernel's dev_valid_name().
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '\0');
    if !valid {
        let rule = "an interface has 1 to 15 bytes, none of them a slash, a colon or a space";
        let problem = Problem::BadName { kind: "an interface", name: name.clone(), rule };
        reader.report(&section.span, problem);
    }
    let attach = [("auto", Attach::Auto), ("native", Attach::Native), ("generic", Attach::Generic)];
    let bind = [("auto", Bind::Auto), ("zero-copy", Bind::ZeroCopy), ("copy", Bind::Copy)];
    let checksums = [("verify", Checksums::Verify), ("trust", Checksums::Trust)];
    let ring = ring(reader, &mut section);
    let nic = Nic {
        name,
        place: reader.place(section.span.start),
        attach: reader.choice(&mut section, "attach", &attach).unwrap_or(Attach::Auto),
        bind: reader.choice(&mut section, "bind", &bind).unwrap_or(Bind::Auto),
        queues: reader.number(&mut section, "queues", 1..=MAX_QUEUES),
        frames: frames(reader, &mut section, ring),
        ring,
        checksums: reader
            .choice(&mut section, "checksums", &checksums)
            .unwrap_or(Checksums::Verify),
    };
    reader.finish(section);
    nic
}

fn ring<'t>(reader: &mut Reader<'t>, section: &mut Section<'t>) -> u32 {
    let Some(ring) = reader.number(section, "ring", 64..=MAX_RING) else { return 2_048 };
    if !ring.is_power_of_two() {
        let nearest = ring.next_power_of_two();
        let span = section.value("ring").map_or(0..0, toml::Spanned::span);
        reader.report(&span, Problem::RingSize { ring, nearest });
        return nearest;
    }
    ring
}

fn frames<'t>(reader: &mut Reader<'t>, section: &mut Section<'t>, ring: u32) -> u32 {
    let least = 2 * ring;
    let Some(frames) = reader.number(section, "frames", 128..=MAX_FRAMES) else {
        return least.max(4_096);
    };
    if frames < least {
        let span = section.value("frames").map_or(0..0, toml::Spanned::span);
        reader.report(&span, Problem::TooFewFrames { frames, ring, least });
    }
    frames
}

fn pools<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<Sound<Pool>> {
    let mut taken = HashMap::new();
    let sections = reader.named_sections(root, "pool");
    sections.into_iter().map(|section| pool(reader, section, &mut taken)).collect()
}

fn pool<'t>(
    reader: &mut Reader<'t>,
    mut section: Section<'t>,
    taken: &mut HashMap<IpAddr, String>,
) -> Sound<Pool> {
    let errors = reader.errors.len();
    check_name(reader, &section, "a pool");
    let mut addresses = Vec::new();
    for item in reader.required_texts(&mut section, "addresses", r#"["192.0.2.16-192.0.2.31"]"#) {
        if let Err(problem) = extend_pool(&section.name, &item, taken, &mut addresses) {
            reader.report(&item.span, problem);
        }
    }
    let ports = reader.text(&mut section, "ports").and_then(|Text { text, span }| {
        let ports = value::ports(text).filter(|ports| ports.first() >= 1_024);
        if ports.is_none() {
            reader.bad_value(
                "ports",
                text,
                &span,
                r#"FIRST-LAST between 1024 and 65535, such as "20000-59999""#,
            );
        }
        ports
    });
    let methods =
        [("hash", Method::Hash), ("round-robin", Method::RoundRobin), ("random", Method::Random)];
    let pool = Pool {
        name: section.name.clone(),
        place: reader.place(section.span.start),
        addresses,
        ports: ports.unwrap_or(PortRange::DEFAULT),
        method: reader.choice(&mut section, "method", &methods).unwrap_or(Method::Hash),
        max_pairs: reader.number(&mut section, "max-pairs", 1..=1 << 20).unwrap_or(4_096) as usize,
    };
    reader.finish(section);
    Sound { value: pool, sound: reader.errors.len() == errors }
}

/// Adds the addresses of one item, all or, from the first bad one on, none.
fn extend_pool(
    pool: &str,
    item: &Text<'_>,
    taken: &mut HashMap<IpAddr, String>,
    addresses: &mut Vec<IpAddr>,
) -> Result<(), Problem> {
    let range = value::address_range(item.text).map_err(|error| match error {
        AddressError::Problem(problem) => problem,
        AddressError::Unparsable => Problem::BadValue {
            key: "addresses".to_owned(),
            found: item.text.to_owned(),
            wanted: r#"an address, a range such as "192.0.2.1-192.0.2.9", or a prefix such as "2001:db8::/124""#,
        },
    })?;
    let room = MAX_POOL_ADDRESSES - taken.len();
    if value::count(&range).is_none_or(|count| count > room as u64) {
        return Err(Problem::TooManyAddresses {
            item: item.text.to_owned(),
            most: MAX_POOL_ADDRESSES,
        });
    }
    for address in value::addresses(range) {
        value::usable(address)?;
        if let Some(other) = taken.get(&address) {
            return Err(Problem::OverlappingPools { address, other: other.clone() });
        }
        taken.insert(address, pool.to_owned());
        addresses.push(address);
    }
    Ok(())
}

fn origins<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<Sound<Origin>> {
    let sections = reader.named_sections(root, "origin");
    sections.into_iter().map(|section| origin(reader, section)).collect()
}

fn origin<'t>(reader: &mut Reader<'t>, mut section: Section<'t>) -> Sound<Origin> {
    let errors = reader.errors.len();
    check_name(reader, &section, "an origin");
    let items = reader.required_texts(&mut section, "addresses", r#"["192.0.2.80:80"]"#);
    if items.len() > MAX_ORIGIN_ADDRESSES {
        let problem = Problem::TooMany { key: "addresses".to_owned(), most: MAX_ORIGIN_ADDRESSES };
        reader.report(&items[MAX_ORIGIN_ADDRESSES].span, problem);
    }
    let mut addresses = Vec::new();
    for item in items.iter().take(MAX_ORIGIN_ADDRESSES) {
        let address = reader.socket_address("addresses", item);
        addresses.extend(address.filter(|address| !addresses.contains(address)));
    }
    let families = Families::NAMES.map(|(name, families)| (name, families));
    let versions = [("v2", ProxyProtocol::V2)];
    let origin = Origin {
        name: section.name.clone(),
        place: reader.place(section.span.start),
        addresses,
        family: reader.choice(&mut section, "family", &families).unwrap_or(Families::Any),
        proxy_protocol: reader.choice(&mut section, "proxy-protocol", &versions),
    };
    if reader.errors.len() == errors {
        check::origin_family(reader, &mut section, &origin);
    }
    reader.finish(section);
    Sound { value: origin, sound: reader.errors.len() == errors }
}

fn services<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<Sound<DraftService<'t>>> {
    let mut listens = 0;
    let sections = reader.named_sections(root, "service");
    sections.into_iter().map(|section| service(reader, section, &mut listens)).collect()
}

fn service<'t>(
    reader: &mut Reader<'t>,
    mut section: Section<'t>,
    listens: &mut usize,
) -> Sound<DraftService<'t>> {
    let errors = reader.errors.len();
    check_name(reader, &section, "a service");
    reader.required_text(&mut section, "mode", r#""tcp""#);
    let on_dead = [("pass", OnDead::Pass), ("drop", OnDead::Drop)];
    let service = Service {
        name: section.name.clone(),
        place: reader.place(section.span.start),
        mode: match section.value("mode") {
            Some(_) => {
                reader.choice(&mut section, "mode", &[("tcp", Mode::Tcp)]).unwrap_or(Mode::Tcp)
            }
            None => Mode::Tcp,
        },
        listen: listen(reader, &mut section, listens),
        origin: usize::MAX,
        pool: usize::MAX,
        on_dead: reader.choice(&mut section, "on-dead", &on_dead).unwrap_or(OnDead::Drop),
        allow_management: reader.flag(&mut section, "allow-management").unwrap_or(false),
    };
    let origin = reader.required_text(&mut section, "origin", r#""web""#);
    let pool = reader.required_text(&mut section, "pool", r#""main""#);
    reader.finish(section);
    Sound { value: DraftService { service, origin, pool }, sound: reader.errors.len() == errors }
}

fn listen<'t>(
    reader: &mut Reader<'t>,
    section: &mut Section<'t>,
    listens: &mut usize,
) -> Vec<Listen> {
    let items = reader.required_texts(section, "listen", r#"["198.51.100.80:80"]"#);
    let room = MAX_LISTENS - *listens;
    if let Some(item) = items.get(room) {
        let problem = Problem::TooMany { key: "listen".to_owned(), most: MAX_LISTENS };
        reader.report(&item.span, problem);
    }
    *listens += items.len().min(room);
    items
        .iter()
        .take(room)
        .filter_map(|item| {
            let address = reader.socket_address("listen", item)?;
            Some(Listen { address, place: reader.place(item.span.start) })
        })
        .collect()
}

fn blocked<'t>(reader: &mut Reader<'t>, root: &mut Section<'t>) -> Vec<IpNet> {
    let mut section = reader.section(root, "block");
    let items = reader.texts(&mut section, "prefixes");
    reader.finish(section);
    if let Some(item) = items.get(MAX_BLOCKED) {
        let problem = Problem::TooMany { key: "prefixes".to_owned(), most: MAX_BLOCKED };
        reader.report(&item.span, problem);
    }
    let mut prefixes = Vec::with_capacity(items.len().min(MAX_BLOCKED));
    for item in items.iter().take(MAX_BLOCKED) {
        match check::blocked(item.text) {
            Ok(prefix) => prefixes.push(prefix),
            Err(problem) => reader.report(&item.span, problem),
        }
    }
    prefixes
}

fn check_name(reader: &mut Reader<'_>, section: &Section<'_>, kind: &'static str) {
    let name = &section.name;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(1..=64).contains(&name.len()) || !name.chars().all(legal) {
        let rule = "use 1 to 64 letters, digits, dots, dashes and underscores";
        let problem = Problem::BadName { kind, name: name.clone(), rule };
        reader.report(&section.span, problem);
    }
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn hours(hours: u64) -> Duration {
    minutes(60 * hours)
}

/// `sun_path` less its closing zero.
const MAX_SOCKET_PATH: usize = 107;
const MAX_RING: u32 = 1 << 15;
const MAX_FRAMES: u32 = 1 << 20;
