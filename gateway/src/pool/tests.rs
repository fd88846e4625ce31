use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

#[test]
fn a_tuple_is_reused_towards_another_origin_only() {
    let (mut pool, mut rng) = (pool(&["192.0.2.1"], 4, Method::Hash), rng());
    let mut leases = Vec::new();
    for origin in [ORIGIN_A, ORIGIN_B] {
        let mut ports = HashSet::new();
        for _ in 0..4 {
            let lease = pool.lease(NOW, client(1), address(origin), &mut rng).unwrap();
            assert_eq!(lease.origin(), address(origin));
            assert!(ports.insert(lease.local().port()));
            leases.push(lease);
        }
        assert_eq!(ports, (5000..5004).collect());
        let refused = pool.lease(NOW, client(1), address(origin), &mut rng).unwrap_err();
        assert_eq!(refused, Refused::Exhausted);
    }
    assert_eq!(pool.census(), Census { leased: 8, cooling: 0, pairs: 2 });
    return_all(&mut pool, leases);
}

#[test]
fn the_next_address_is_taken_before_a_client_is_refused() {
    let (mut pool, mut rng) =
        (pool(&["192.0.2.1", "192.0.2.2", "192.0.2.3"], 5, Method::Hash), rng());
    let leases: Vec<_> =
        (0..15).map(|_| pool.lease(NOW, client(7), address(ORIGIN_A), &mut rng).unwrap()).collect();
    let first = leases[0].local().ip();
    assert!(leases[..5].iter().all(|lease| lease.local().ip() == first));
    assert!(leases[5..].iter().all(|lease| lease.local().ip() != first));
    assert!(pool.lease(NOW, client(8), address(ORIGIN_A), &mut rng).is_err());
    return_all(&mut pool, leases);
}

#[test]
fn time_wait_is_cut_short_only_when_nothing_else_is_left_and_after_a_second() {
    let (mut pool, mut rng) = (pool(&["192.0.2.1"], 2, Method::Random), rng());
    let origin = address(ORIGIN_A);
    let first = pool.lease(NOW, client(1), origin, &mut rng).unwrap();
    let second = pool.lease(NOW, client(1), origin, &mut rng).unwrap();
    let (first_local, second_local) = (first.local(), second.local());
    pool.release(first, at(0), Release::TimeWait);
    assert_eq!(pool.lease(at(999), client(1), origin, &mut rng).unwrap_err(), Refused::Exhausted);
    pool.release(second, at(999), Release::Free);
    let fresh = pool.lease(at(1000), client(1), origin, &mut rng).unwrap();
    assert_eq!(fresh.local(), second_local, "a free port is preferred");
    let early = pool.lease(at(1000), client(1), origin, &mut rng).unwrap();
    assert_eq!(early.local(), first_local);
    assert_eq!(pool.census(), Census { leased: 2, cooling: 0, pairs: 1 });
    pool.release(early, at(2000), Release::TimeWait);
    pool.release(fresh, at(2000), Release::TimeWait);
    pool.expire(at(61_999), usize::MAX);
    assert_eq!(pool.census().cooling, 2);
    pool.expire(at(62_000), usize::MAX);
    assert_eq!(pool.census(), Census::default());
}

#[test]
fn the_family_follows_the_origin() {
    let (mut pool, mut rng) = (pool(&["192.0.2.1", "2001:db8::1"], 5, Method::RoundRobin), rng());
    let v6 = pool.lease(NOW, client(1), address(ORIGIN_6), &mut rng).unwrap();
    let v4 = pool.lease(NOW, "2001:db8::9".parse().unwrap(), address(ORIGIN_A), &mut rng).unwrap();
    assert!(v6.local().is_ipv6() && v4.local().is_ipv4());
    return_all(&mut pool, [v4, v6]);
    // Spare records serve either family.
    let again = pool.lease(NOW, client(1), address(ORIGIN_6), &mut rng).unwrap();
    return_all(&mut pool, [again]);

    let mut v4_only = self::pool(&["192.0.2.1"], 5, Method::Hash);
    let refused = v4_only.lease(NOW, client(1), address(ORIGIN_6), &mut rng).unwrap_err();
    assert_eq!(refused, Refused::NoAddress);
}

#[test]
fn workers_never_lease_the_same_port() {
    let addresses = parse(&["192.0.2.1"]);
    let mut seen = HashSet::new();
    for worker in 0..4 {
        let share = Share { worker, workers: 4, ..share(&addresses, 7, Method::Hash) };
        let mut pool = Pool::new(&share);
        let leases: Vec<_> =
            std::iter::from_fn(|| pool.lease(NOW, client(1), address(ORIGIN_A), &mut rng()).ok())
                .collect();
        for lease in &leases {
            assert!(seen.insert(lease.local().port()));
            assert_eq!(share.ports.owner_of(lease.local().port(), 4), Some(worker));
        }
        return_all(&mut pool, leases);
    }
    assert_eq!(seen.len(), 7);
    // More workers than ports: the last ones have none, and say so.
    let mut last =
        Pool::new(&Share { worker: 9, workers: 10, ..share(&addresses, 7, Method::Hash) });
    assert_eq!(
        last.lease(NOW, client(1), address(ORIGIN_A), &mut rng()).unwrap_err(),
        Refused::Exhausted
    );
}

#[test]
fn pairs_are_bounded_and_used_before_a_client_is_refused() {
    let addresses = parse(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    let share = Share { max_pairs: 2, ..share(&addresses, 5, Method::RoundRobin) };
    let (mut pool, mut rng) = (Pool::new(&share), rng());
    let leases: Vec<_> =
        (0..10).map(|_| pool.lease(NOW, client(1), address(ORIGIN_A), &mut rng).unwrap()).collect();
    for origin in [ORIGIN_A, ORIGIN_B] {
        let refused = pool.lease(NOW, client(1), address(origin), &mut rng).unwrap_err();
        assert_eq!(refused, Refused::PairLimit);
    }
    assert_eq!(pool.census().pairs, 2);
    return_all(&mut pool, leases);
    let freed = pool.lease(NOW, client(1), address(ORIGIN_B), &mut rng).unwrap();
    return_all(&mut pool, [freed]);
}

#[test]
fn at_the_limit_of_pairs_flows_share_those_that_are_there() {
    let addresses: Vec<IpAddr> = (0..1000).map(client_at).collect();
    let share = Share { max_pairs: 10, ..share(&addresses, 40, Method::Random) };
    let (mut pool, mut rng) = (Pool::new(&share), rng());
    let mut leases: Vec<_> = (0..400)
        .map(|n| pool.lease(NOW, client_at(n), address(ORIGIN_A), &mut rng).unwrap())
        .collect();
    let tuples: HashSet<_> = leases.iter().map(Lease::local).collect();
    assert_eq!(tuples.len(), 400);
    let refused = pool.lease(NOW, client(1), address(ORIGIN_A), &mut rng).unwrap_err();
    assert_eq!(refused, Refused::PairLimit);
    // Any order of return leaves consistent lists.
    for n in (0..400).rev() {
        pool.release(leases.swap_remove((n * 7) % leases.len()), NOW, Release::Free);
        if n % 3 == 0 {
            leases.push(
                pool.lease(NOW, client(1), address(ORIGIN_B), &mut rng)
                    .or_else(|_| pool.lease(NOW, client(1), address(ORIGIN_A), &mut rng))
                    .unwrap(),
            );
        }
    }
    return_all(&mut pool, leases);
}

#[test]
fn hash_keeps_clients_and_adding_an_address_moves_its_share() {
    for count in [9u32, 300, 2000] {
        let after: Vec<IpAddr> = (0..=count).map(client_at).collect();
        let before = &after[..count as usize];
        let (old, same, new) = (choices(before), choices(before), choices(&after));
        assert_eq!(old, same, "the same client, the same address");
        let moved: Vec<_> = old.iter().zip(&new).filter(|(old, new)| old != new).collect();
        let added = after[count as usize];
        assert!(
            moved.iter().all(|(_, new)| **new == added),
            "clients move to the new address only"
        );
        // Binomial, within five standard deviations.
        let expected = f64::from(CLIENTS) / f64::from(count + 1);
        let difference = (moved.len() as f64 - expected).abs();
        assert!(difference < 5.0 * expected.sqrt(), "{} of {expected} moved", moved.len());
    }
}

#[test]
fn hash_spreads_clients_evenly_over_many_addresses() {
    for count in [256u32, 257, 2000] {
        let addresses: Vec<IpAddr> = (0..count).map(client_at).collect();
        let mut counts = HashMap::<IpAddr, u32>::new();
        for address in choices(&addresses) {
            *counts.entry(address).or_default() += 1;
        }
        // Chi square with count - 1 degrees of freedom, within five standard deviations.
        let expected = f64::from(CLIENTS) / f64::from(count);
        let square = |address| {
            let seen = f64::from(counts.get(address).copied().unwrap_or(0));
            (seen - expected).powi(2) / expected
        };
        let chi: f64 = addresses.iter().map(square).sum();
        let freedom = f64::from(count - 1);
        assert!((chi - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "{chi} for {count}");
    }
}

#[test]
fn every_method_spreads_clients_evenly() {
    let addresses: Vec<IpAddr> = (1..=8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    for method in [Method::Hash, Method::RoundRobin, Method::Random] {
        let mut counts = HashMap::<IpAddr, usize>::new();
        for address in chosen(&addresses, method) {
            *counts.entry(address).or_default() += 1;
        }
        let expected = CLIENTS as f64 / 8.0;
        for (address, count) in &counts {
            let ratio = *count as f64 / expected;
            assert!((0.9..1.1).contains(&ratio), "{method:?}: {address} has {ratio} of its share");
        }
        assert_eq!(counts.len(), 8, "{method:?}");
        if method == Method::RoundRobin {
            assert!(counts.values().all(|count| *count == CLIENTS as usize / 8));
        }
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "was not given back")]
fn a_lost_lease_is_noticed() {
    let _ =
        pool(&["192.0.2.1"], 4, Method::Hash).lease(NOW, client(1), address(ORIGIN_A), &mut rng());
}

#[derive(Debug, Clone)]
enum Step {
    Lease { client: u8, origin: usize },
    Release { which: usize, how: Release },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![Just(Release::Free), Just(Release::TimeWait)];
    prop_oneof![
        5 => (any::<u8>(), 0..ORIGINS.len()).prop_map(|(client, origin)| Step::Lease { client, origin }),
        3 => (any::<usize>(), how).prop_map(|(which, how)| Step::Release { which, how }),
        1 => (0u64..2_000).prop_map(|millis| Step::Wait { millis }),
        1 => (0u64..90_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Against a model that knows nothing but sets of tuples.
    #[test]
    fn no_tuple_is_leased_twice_and_none_is_lost(
        steps in prop::collection::vec(step(), 1..250),
        method in prop_oneof![Just(Method::Hash), Just(Method::RoundRobin), Just(Method::Random)],
        workers in 1usize..4,
        seed in any::<u64>(),
    ) {
        let addresses = parse(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        let share = Share { workers, worker: workers - 1, ..share(&addresses, 7, method) };
        let (mut pool, mut rng) = (Pool::new(&share), SmallRng::seed_from_u64(seed));
        let ports = pool.ports_per_address();
        let mut now = NOW;
        let mut live: Vec<Lease> = Vec::new();
        let mut cooling: HashMap<(SocketAddr, SocketAddr), Instant> = HashMap::new();
        for step in steps {
            match step {
                Step::Wait { millis } => now += Duration::from_millis(millis),
                Step::Release { which, how } if !live.is_empty() => {
                    let lease = live.swap_remove(which % live.len());
                    if how == Release::TimeWait {
                        cooling.insert((lease.local(), lease.origin()), now);
                    }
                    pool.release(lease, now, how);
                }
                Step::Release { .. } => {}
                Step::Lease { client: host, origin } => {
                    let origin = address(ORIGINS[origin]);
                    let total = ports * if origin.is_ipv4() { 2 } else { 1 };
                    let taken = live.iter().filter(|lease| lease.origin() == origin).count();
                    let young = cooling
                        .iter()
                        .filter(|((_, to), since)| *to == origin && now < **since + LEAST_COOLING)
                        .count();
                    match pool.lease(now, client(host), origin, &mut rng) {
                        Ok(lease) => {
                            prop_assert!(taken + young < total);
                            let tuple = (lease.local(), lease.origin());
                            prop_assert!(live.iter().all(|l| (l.local(), l.origin()) != tuple));
                            prop_assert!(addresses.contains(&lease.local().ip()));
                            prop_assert_eq!(
                                share.ports.owner_of(lease.local().port(), workers),
                                Some(workers - 1)
                            );
                            if let Some(since) = cooling.remove(&tuple) {
                                prop_assert!(now >= since + LEAST_COOLING);
                            }
                            live.push(lease);
                        }
                        Err(refused) => {
                            prop_assert_eq!(refused, Refused::Exhausted);
                            prop_assert_eq!(taken + young, total);
                        }
                    }
                }
            }
            prop_assert_eq!(pool.census().leased, live.len());
        }
        for lease in live {
            pool.release(lease, now, Release::TimeWait);
        }
        pool.expire(now + share.time_wait, usize::MAX);
        prop_assert_eq!(pool.census(), Census::default());
        prop_assert!(pool.pair_of.is_empty() && pool.target_of.is_empty() && pool.cooling.is_empty());
        prop_assert!(pool.pairs.iter().all(|pair| pair.used.is_empty()));
    }
}

fn return_all(pool: &mut Pool, leases: impl IntoIterator<Item = Lease>) {
    for lease in leases {
        pool.release(lease, NOW, Release::Free);
    }
    assert_eq!(pool.census(), Census::default());
}

fn choices(addresses: &[IpAddr]) -> Vec<IpAddr> {
    chosen(addresses, Method::Hash)
}

/// The address that each of many clients gets.
fn chosen(addresses: &[IpAddr], method: Method) -> Vec<IpAddr> {
    let (mut pool, mut rng) = (Pool::new(&share(addresses, 10, method)), rng());
    (0..CLIENTS)
        .map(|n| {
            let lease = pool.lease(NOW, client_at(n), address(ORIGIN_A), &mut rng).unwrap();
            let chosen = lease.local().ip();
            pool.release(lease, NOW, Release::Free);
            chosen
        })
        .collect()
}

fn pool(addresses: &[&str], ports: u16, method: Method) -> Pool {
    Pool::new(&share(&parse(addresses), ports, method))
}

fn share(addresses: &[IpAddr], ports: u16, method: Method) -> Share<'_> {
    Share {
        addresses,
        ports: PortRange::new(5000, 5000 + ports - 1).unwrap(),
        method,
        max_pairs: 1000,
        time_wait: Duration::from_secs(60),
        worker: 0,
        workers: 1,
        secret: *b"sixteen letters!",
    }
}

fn parse(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn client(host: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, host])
}

fn client_at(number: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn at(millis: i64) -> Instant {
    NOW + Duration::from_millis(millis as u64)
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(1)
}

const NOW: Instant = Instant::from_micros_const(1_000_000);
const CLIENTS: u32 = 20_000;
const ORIGIN_A: &str = "203.0.113.1:80";
const ORIGIN_B: &str = "203.0.113.1:81";
const ORIGIN_6: &str = "[2001:db8:5::1]:80";
const ORIGINS: [&str; 3] = [ORIGIN_A, ORIGIN_B, ORIGIN_6];
