//! The checked-in object holds the program and the maps that the gateway expects.

use aya_obj::generated::bpf_map_type;
use aya_obj::{Object, ProgramSection};
use headgate_ebpf::map::{
    BLOCKED_V4, BLOCKED_V6, COUNTERS, HEARTBEAT, MAX_BLOCKED, MAX_POOLS, MAX_QUEUES, MAX_SERVICES,
    POOLS, PROGRAM, SERVICES, SETTINGS, XSKS,
};
use headgate_ebpf::{Endpoint, OBJECT, PoolKey, PoolRule, ServiceRule, Verdict};

#[test]
fn it_is_aligned_for_loaders() {
    assert_eq!(OBJECT.as_ptr().align_offset(8), 0);
}

#[test]
fn it_holds_one_xdp_program() {
    let object = Object::parse(OBJECT).unwrap();
    assert_eq!(object.programs.keys().collect::<Vec<_>>(), [PROGRAM]);
    assert!(matches!(object.programs[PROGRAM].section, ProgramSection::Xdp { frags: false, .. }));
    assert!(object.btf.is_some(), "no type information");
}

#[test]
fn its_maps_are_those_of_the_library() {
    use bpf_map_type::{
        BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_PERCPU_ARRAY,
        BPF_MAP_TYPE_XSKMAP,
    };
    let expected = [
        (BLOCKED_V4, BPF_MAP_TYPE_LPM_TRIE, 4 + 4, 4, MAX_BLOCKED, NO_PREALLOC),
        (BLOCKED_V6, BPF_MAP_TYPE_LPM_TRIE, 4 + 16, 4, MAX_BLOCKED, NO_PREALLOC),
        (COUNTERS, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, Verdict::COUNT as u32, 0),
        (HEARTBEAT, BPF_MAP_TYPE_ARRAY, 4, 8, MAX_QUEUES, MMAPABLE),
        (POOLS, BPF_MAP_TYPE_HASH, PoolKey::SIZE, PoolRule::SIZE, MAX_POOLS, 0),
        (SERVICES, BPF_MAP_TYPE_HASH, Endpoint::SIZE, ServiceRule::SIZE, MAX_SERVICES, 0),
        (SETTINGS, BPF_MAP_TYPE_ARRAY, 4, 16, 1, 0),
        (XSKS, BPF_MAP_TYPE_XSKMAP, 4, 4, MAX_QUEUES, 0),
    ];
    let object = Object::parse(OBJECT).unwrap();
    assert_eq!(object.maps.len(), expected.len());
    for (name, kind, key, value, entries, flags) in expected {
        let map = object.maps.get(name).unwrap_or_else(|| panic!("no map {name}"));
        assert_eq!(map.map_type(), kind as u32, "type of {name}");
        assert_eq!(map.key_size() as usize, key, "key of {name}");
        assert_eq!(map.value_size(), value as u32, "value of {name}");
        assert_eq!(map.max_entries(), entries, "entries of {name}");
        assert_eq!(map.map_flags(), flags, "flags of {name}");
    }
}

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;
