use proptest::prelude::*;

use super::*;

#[test]
fn the_longest_prefix_wins_then_the_lowest_metric() {
    let routes = routes(&[
        ("0.0.0.0/0", 0, &[(1, Some("192.0.2.1"))]),
        ("10.0.0.0/8", 20, &[(1, Some("192.0.2.2"))]),
        ("10.0.0.0/8", 10, &[(1, Some("192.0.2.3"))]),
        ("10.1.0.0/16", 900, &[(1, Some("192.0.2.4"))]),
        ("192.0.2.0/24", 0, &[(1, None)]),
        ("::/0", 1024, &[(2, Some("fe80::1"))]),
    ]);
    for (destination, gateway, ifindex) in [
        ("8.8.8.8", "192.0.2.1", 1),
        ("10.2.3.4", "192.0.2.3", 1),
        ("10.1.3.4", "192.0.2.4", 1),
        ("192.0.2.99", "192.0.2.99", 1),
        ("2001:db8::1", "fe80::1", 2),
    ] {
        assert_eq!(
            routes.next_hop(ip(destination)),
            NextHop::Unresolved { ifindex, gateway: ip(gateway) },
            "{destination}"
        );
    }
}

#[test]
fn a_neighbour_is_used_as_far_as_the_kernel_trusts_it() {
    let mut routes = routes(&[("192.0.2.0/24", 0, &[(1, None)])]);
    let gateway = ip("192.0.2.9");
    let ready =
        |fresh| NextHop::Ready { ifindex: 1, mac: STATION, source_mac: OWN, gateway, fresh };
    let unresolved = NextHop::Unresolved { ifindex: 1, gateway };
    for (state, mac, expected) in [
        (NeighbourState::Valid, Some(STATION), ready(true)),
        (NeighbourState::Stale, Some(STATION), ready(false)),
        (NeighbourState::Incomplete, None, unresolved),
        (NeighbourState::Valid, None, unresolved),
        (NeighbourState::Failed, Some(STATION), NextHop::Failed { ifindex: 1, gateway }),
    ] {
        assert!(routes.set_neighbour(1, gateway, Some(Neighbour { state, mac })));
        assert!(!routes.set_neighbour(1, gateway, Some(Neighbour { state, mac })), "no change");
        assert_eq!(routes.next_hop(gateway), expected);
    }
    // The same address on another link is another station.
    routes.set_neighbour(
        2,
        gateway,
        Some(Neighbour { state: NeighbourState::Valid, mac: Some(STATION) }),
    );
    assert_eq!(routes.next_hop(gateway), NextHop::Failed { ifindex: 1, gateway });
    assert!(routes.set_neighbour(1, gateway, None));
    assert_eq!(routes.next_hop(gateway), unresolved);
}

#[test]
fn what_leads_nowhere_is_no_route() {
    let mut routes = routes(&[
        ("192.0.2.0/24", 0, &[(1, None)]),
        ("10.0.0.0/8", 0, &[]),
        ("11.0.0.0/8", 0, &[(3, None)]),
        ("12.0.0.0/8", 0, &[(4, None)]),
        ("13.0.0.0/8", 0, &[(99, None)]),
        ("0.0.0.0/0", 5, &[(1, Some("192.0.2.1"))]),
    ]);
    assert_eq!(routes.next_hop(ip("10.1.1.1")), NextHop::NoRoute, "unreachable by intention");
    assert_eq!(routes.next_hop(ip("192.0.2.200")), NextHop::Local);
    let default = NextHop::Unresolved { ifindex: 1, gateway: ip("192.0.2.1") };
    for destination in ["11.1.1.1", "12.1.1.1", "13.1.1.1"] {
        assert_eq!(routes.next_hop(ip(destination)), default, "a dead route is as good as none");
    }
    assert_eq!(routes.next_hop(ip("2001:db8::1")), NextHop::NoRoute);
    routes.replace_topology(HashMap::new(), HashSet::new(), []);
    assert_eq!(routes.next_hop(ip("192.0.2.200")), NextHop::NoRoute);
}

#[test]
fn several_hops_share_the_destinations_by_weight_and_survive_a_dead_one() {
    let hop = |n, weight, dead| RouteHop {
        ifindex: 1,
        gateway: Some(IpAddr::from([192, 0, 2, n])),
        weight,
        dead,
    };
    let count = |hops: Vec<RouteHop>| {
        let prefix = "0.0.0.0/0".parse().unwrap();
        let mut routes = Routes::default();
        routes.replace_topology(links(), HashSet::new(), [Route { prefix, metric: 0, hops }]);
        let mut counts = [0u32; 4];
        for n in 0..40_000u32 {
            let destination = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
            assert_eq!(routes.next_hop(destination), routes.next_hop(destination));
            match routes.next_hop(destination) {
                NextHop::Unresolved { gateway: IpAddr::V4(v4), .. } => {
                    counts[v4.octets()[3] as usize] += 1
                }
                other => panic!("{other:?}"),
            }
        }
        counts
    };
    let shares = count(vec![hop(1, 1, false), hop(2, 3, false)]);
    assert!((9_500..10_500).contains(&shares[1]), "{shares:?}");
    assert_eq!(count(vec![hop(1, 1, false), hop(2, 3, true)]), [0, 40_000, 0, 0]);
}

#[test]
fn v4_may_go_by_a_v6_router() {
    let mut routes = routes(&[("0.0.0.0/0", 0, &[(2, Some("fe80::1"))])]);
    let neighbour = Neighbour { state: NeighbourState::Valid, mac: Some(STATION) };
    routes.set_neighbour(2, ip("fe80::1"), Some(neighbour));
    let NextHop::Ready { ifindex: 2, mac: STATION, .. } = routes.next_hop(ip("8.8.8.8")) else {
        panic!("{:?}", routes.next_hop(ip("8.8.8.8")));
    };
}

proptest! {
    /// Against a linear search.
    #[test]
    fn the_table_agrees_with_a_linear_search(
        prefixes in prop::collection::vec((any::<u32>(), 0u8..=32), 0..40),
        destinations in prop::collection::vec(any::<u32>(), 1..20),
    ) {
        let prefixes: Vec<IpNet> = prefixes
            .iter()
            .map(|(bits, len)| IpNet::new(v4(*bits), *len).unwrap().trunc())
            .collect();
        let table = Table::new(prefixes.iter().map(|prefix| Route { prefix: *prefix, metric: 0, hops: vec![] }));
        let inside = prefixes.iter().map(|prefix| prefix.addr());
        for destination in destinations.into_iter().map(v4).chain(inside) {
            let longest = prefixes.iter().filter(|p| p.contains(&destination)).map(|p| p.prefix_len()).max();
            let found = table.matching(destination).next().map(|route| route.prefix.prefix_len());
            prop_assert_eq!(found, longest);
            prop_assert!(table.matching(destination).all(|route| route.prefix.contains(&destination)));
        }
    }
}

type Written<'a> = (&'a str, u32, &'a [(u32, Option<&'a str>)]);

fn routes(written: &[Written<'_>]) -> Routes {
    let hop = |(ifindex, gateway): &(u32, Option<&str>)| RouteHop {
        ifindex: *ifindex,
        gateway: gateway.map(ip),
        weight: 1,
        dead: false,
    };
    let route = |(prefix, metric, hops): &Written<'_>| Route {
        prefix: prefix.parse().unwrap(),
        metric: *metric,
        hops: hops.iter().map(hop).collect(),
    };
    let mut routes = Routes::default();
    routes.replace_topology(links(), HashSet::from([ip("192.0.2.200")]), written.iter().map(route));
    routes
}

/// 1 and 2 are well, 3 is down, 4 is not Ethernet.
fn links() -> HashMap<u32, Link> {
    let link =
        |index: u32, mac, up| (index, Link { name: format!("eth{index}"), mac, mtu: 1500, up });
    HashMap::from([
        link(1, Some(OWN), true),
        link(2, Some(OWN), true),
        link(3, Some(OWN), false),
        link(4, None, true),
    ])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(bits: u32) -> IpAddr {
    std::net::Ipv4Addr::from(bits).into()
}

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];
