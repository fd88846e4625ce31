//! What can only be seen by looking at several sections together.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::problem::{Hint, Problem};
use super::sections::{Draft, Sound};
use super::text::{Reader, Section, Text};
use super::value::{self, AddressError};
use super::{Listen, Origin, Pool, Service};
use crate::origin::{Families, Family};

/// Resolves the names in the services. True if every one was.
pub(super) fn resolve(reader: &mut Reader<'_>, draft: &mut Draft<'_>) -> bool {
    let index = |kind, reader: &mut Reader<'_>, name: &Option<Text<'_>>, known: Vec<&str>| {
        let Text { text, span } = name.as_ref()?;
        let found = known.iter().position(|known| known == text);
        if found.is_none() {
            let hint = Hint::new(text, known);
            reader.report(span, Problem::UnknownName { kind, name: (*text).to_owned(), hint });
        }
        found
    };
    let mut complete = true;
    for Sound { value, sound } in &mut draft.services {
        let origins = draft.origins.iter().map(|origin| origin.value.name.as_str()).collect();
        let origin = index("origin", reader, &value.origin, origins);
        let pools = draft.pools.iter().map(|pool| pool.value.name.as_str()).collect();
        let pool = index("pool", reader, &value.pool, pools);
        if let (Some(origin), Some(pool)) = (origin, pool) {
            value.service.origin = origin;
            value.service.pool = pool;
        } else {
            *sound = false;
            complete = false;
        }
    }
    complete
}

pub(super) fn check(reader: &mut Reader<'_>, draft: &Draft<'_>) {
    listens(reader, draft);
    origins(reader, draft);
    for service in draft.services.iter().filter(|service| service.sound) {
        let service = &service.value.service;
        let (origin, pool) = (&draft.origins[service.origin], &draft.pools[service.pool]);
        if origin.sound && pool.sound {
            families(reader, service, &origin.value, &pool.value);
        }
    }
}

/// The addresses of an origin must include one that its `family` allows.
pub(super) fn origin_family<'t>(
    reader: &mut Reader<'t>,
    section: &mut Section<'t>,
    origin: &Origin,
) {
    let (family, choice) = match origin.family {
        Families::V4 => (Family::V4, "v4"),
        Families::V6 => (Family::V6, "v6"),
        Families::Any | Families::Client => return,
    };
    if !origin.addresses.iter().any(|address| Family::of(address.ip()) == family) {
        let span = section.value("family").map_or(0..0, toml::Spanned::span);
        let origin = origin.name.clone();
        reader.report(&span, Problem::OriginWithoutFamily { origin, choice, family });
    }
}

/// A prefix to block, unless that would block everybody.
pub(super) fn blocked(text: &str) -> Result<IpNet, Problem> {
    let prefix = value::prefix(text).map_err(|error| match error {
        AddressError::Problem(problem) => problem,
        AddressError::Unparsable => Problem::BadValue {
            key: "prefixes".to_owned(),
            found: text.to_owned(),
            wanted: r#"an address or a prefix, such as "198.51.100.0/24""#,
        },
    })?;
    match prefix.prefix_len() {
        0 => Err(Problem::BlocksAll {
            prefix: prefix.to_string(),
            family: Family::of(prefix.addr()),
        }),
        _ => Ok(prefix),
    }
}

fn listens(reader: &mut Reader<'_>, draft: &Draft<'_>) {
    let pools = pool_addresses(draft);
    let mut taken: HashMap<SocketAddr, &str> = HashMap::new();
    for service in &draft.services {
        let service = &service.value.service;
        for &Listen { address, place } in &service.listen {
            if let Some(other) = taken.insert(address, &service.name) {
                let other = other.to_owned();
                reader.report_at(place, Problem::DuplicateListen { address, other });
            }
            if address.port() == SSH_PORT && !service.allow_management {
                reader.report_at(place, Problem::ManagementPort { address });
            }
            if let Some(pool) = pools.get(&address.ip())
                && pool.ports.contains(address.port())
            {
                let (pool, ports) = (pool.name.clone(), pool.ports.to_string());
                reader.report_at(place, Problem::ListenInPool { address, pool, ports });
            }
        }
    }
}

fn origins(reader: &mut Reader<'_>, draft: &Draft<'_>) {
    let pools = pool_addresses(draft);
    let services = draft.services.iter().map(|service| &service.value.service);
    let listens: HashMap<SocketAddr, &str> = services
        .flat_map(|service| service.listen.iter().map(|listen| (listen.address, &*service.name)))
        .collect();
    for Sound { value: origin, .. } in &draft.origins {
        for &address in &origin.addresses {
            if let Some(service) = listens.get(&address) {
                let service = (*service).to_owned();
                reader.report_at(origin.place, Problem::OriginIsService { address, service });
            }
            if let Some(pool) = pools.get(&address.ip()) {
                let pool = pool.name.clone();
                reader.report_at(origin.place, Problem::OriginInPool { address, pool });
            }
            if let Some(prefix) = draft.blocked.iter().find(|prefix| prefix.contains(&address.ip()))
            {
                let prefix = prefix.to_string();
                reader.report_at(origin.place, Problem::OriginBlocked { address, prefix });
            }
        }
    }
}

/// Every family that a flow of the service may leave by needs an address in the pool.
fn families(reader: &mut Reader<'_>, service: &Service, origin: &Origin, pool: &Pool) {
    let of_origin = |family| origin.addresses.iter().any(|a| Family::of(a.ip()) == family);
    for family in [Family::V4, Family::V6] {
        let has_clients =
            service.listen.iter().any(|listen| Family::of(listen.address.ip()) == family);
        let reached = of_origin(family)
            && match origin.family {
                Families::Any => true,
                Families::V4 => family == Family::V4,
                Families::V6 => family == Family::V6,
                Families::Client => has_clients,
            };
        let (service_name, origin_name) = (service.name.clone(), origin.name.clone());
        if origin.family == Families::Client && has_clients && !of_origin(family) {
            reader.report_at(
                service.place,
                Problem::ClientWithoutOrigin { service: service_name, origin: origin_name, family },
            );
        } else if reached && !pool.addresses.iter().any(|a| Family::of(*a) == family) {
            reader.report_at(
                service.place,
                Problem::PoolWithoutFamily {
                    service: service_name,
                    origin: origin_name,
                    pool: pool.name.clone(),
                    family,
                },
            );
        }
    }
}

fn pool_addresses<'a>(draft: &'a Draft<'_>) -> HashMap<IpAddr, &'a Pool> {
    let pools = draft.pools.iter().map(|pool| &pool.value);
    pools.flat_map(|pool| pool.addresses.iter().map(move |address| (*address, pool))).collect()
}

const SSH_PORT: u16 = 22;
