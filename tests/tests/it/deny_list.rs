//! The hashed list of many denied addresses, and changes to it while it is in use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use guard::{
    dataplane::{Generation, LoadError, PortUpdates, needs_new_generation},
    host,
    policy::{Action, CompileInput, Containers, Entry, KernelTick, Policy, ServiceIds, Tables},
};
use guard_common::{
    deny_list::{DenyPlace, TAGS, line_bits},
    reason::Verdict,
};

use crate::{
    frames::{flags::*, protocol, *},
    judge::{run_program, test_run},
};

const LOCAL_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The number of denied addresses: enough for the hashed list.
const COUNT: u32 = 20_000;

/// The first of many consecutive addresses.
const FIRST: u32 = u32::from_be_bytes([100, 64, 0, 0]);

fn frame(source: u32) -> Vec<u8> {
    ipv4(Ipv4Addr::from(source), protocol::TCP, &tcp(80, SYN, &[]))
}

/// Addresses that hash to the same line of the list, none of them among the consecutive ones.
fn on_one_line(count: usize) -> Vec<u32> {
    let line = |address| DenyPlace::of(address, line_bits(COUNT)).line;
    let far = u32::from_be_bytes([198, 18, 0, 0]);
    let same = (far..).filter(|address| line(*address) == line(far));
    same.take(count).collect()
}

fn policy(denied: impl Iterator<Item = u32>) -> String {
    let denied = denied.map(|address| format!("\"{}\",\n", Ipv4Addr::from(address)));
    let denied: String = denied.collect();
    format!(
        "mode = \"enforce\"\nscope = \"host\"\ndocker.socket = \"\"\n\
         [[service]]\nname = \"web\"\nports = [\"tcp/80\"]\n\
         [[source]]\nname = \"feed\"\ndeny = true\ncidrs = [\n{denied}]\n"
    )
}

struct Changing {
    policy: Policy,
    tick_ns: u64,
    entries: Vec<Entry>,
}

impl Changing {
    fn new(text: &str) -> Self {
        let tick_ns = host::tick_ns().unwrap();
        Self {
            policy: Policy::parse(text, "test.toml", KernelTick { tick_ns }).unwrap(),
            tick_ns,
            entries: Vec::new(),
        }
    }

    fn tables(&self) -> Tables {
        let compile_input = CompileInput {
            containers: &Containers::default(),
            local_ports: &LOCAL_PORTS,
            now: host::timebase().unwrap(),
            entries: &self.entries,
            own_sources: &BTreeSet::new(),
        };
        Tables::compile_at(&self.policy, &compile_input, &ServiceIds::new(&self.policy))
    }

    fn load(&self) -> Generation {
        Generation::load(self.tables(), self.tick_ns).unwrap()
    }

    fn deny(&mut self, prefix: &str, lasts: Option<Duration>) {
        let now = host::timebase().unwrap();
        self.entries.push(Entry {
            id: self.entries.len() as u64,
            action: Action::Deny,
            prefix: prefix.parse().unwrap(),
            service: None,
            owner: None,
            reason: None,
            by: None,
            process: None,
            created: now.world,
            expires: lasts.map(|lasts| now.world + lasts),
        });
    }
}

/// Changes a running generation, and counts how often each of these frames passes meanwhile.
fn passes_while(
    running: &mut Generation,
    tables: Tables,
    frames: &[Vec<u8>],
) -> (Vec<u64>, Result<(), LoadError>) {
    let program = running.program().unwrap().info().unwrap();
    let program = Xdp::from_program_info(program, "guard".into(), XdpAttachType::Interface);
    let program = program.unwrap();
    let (is_judging, is_changed) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let judging = scope.spawn(|| {
            let mut passed = vec![0; frames.len()];
            while !is_changed.load(Ordering::Relaxed) {
                for (frame, passed) in frames.iter().zip(&mut passed) {
                    *passed += u64::from(run_program(&program, frame) == Verdict::Pass);
                }
                is_judging.store(true, Ordering::Relaxed);
            }
            passed
        });
        while !is_judging.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let changed = running.change(tables, &mut PortUpdates::default());
        is_changed.store(true, Ordering::Relaxed);
        (judging.join().unwrap(), changed)
    })
}

/// Asserts which addresses are denied, by the running generation and by a newly loaded one.
#[track_caller]
fn assert_denied(changing: &Changing, running: &Generation, what: &str, expected: &[(&str, bool)]) {
    let expected: BTreeMap<_, _> = expected.iter().copied().collect();
    let fresh = changing.load();
    for (which, generation) in [("changed", running), ("fresh", &fresh)] {
        let found = expected.keys().map(|source| {
            let address: Ipv4Addr = source.parse().unwrap();
            let verdict = test_run(generation, &frame(address.to_bits()));
            (*source, verdict == Verdict::Drop)
        });
        assert_eq!(
            found.collect::<BTreeMap<_, _>>(),
            expected,
            "{what}, {which}"
        );
    }
}

#[test]
fn a_long_list_denies_each_of_its_addresses_and_nobody_else() {
    let crowded = on_one_line(2 * TAGS);
    let (listed, others) = crowded.split_at(TAGS + 4);
    let few = COUNT - listed.len() as u32;
    let neighbours = FIRST..FIRST + few;
    // The first and the last address that can be on a wire (RFC 1122, section 3.2.1.3).
    let edges = [1, 0xffff_fffe];
    let changing = Changing::new(&policy(
        neighbours
            .clone()
            .chain(listed.iter().copied())
            .chain(edges),
    ));
    let generation = changing.load();
    let is_denied = |address| test_run(&generation, &frame(address)) == Verdict::Drop;
    for address in neighbours.clone().step_by(197).chain(edges) {
        assert!(is_denied(address), "{}", Ipv4Addr::from(address));
    }
    for address in listed {
        assert!(
            is_denied(*address),
            "the line of {}",
            Ipv4Addr::from(*address)
        );
    }
    for address in others {
        assert!(
            !is_denied(*address),
            "the line of {}",
            Ipv4Addr::from(*address)
        );
    }
    let beside = [FIRST - 1, FIRST + few, 2, 0xffff_fffd];
    let far = (1..100u32).map(|n| n.wrapping_mul(0x9e37_79b1) & 0x3fff_ffff | 0x8000_0000);
    let denied: BTreeSet<u32> = neighbours.chain(crowded).chain(edges).collect();
    for address in beside
        .into_iter()
        .chain(far)
        .filter(|one| !denied.contains(one))
    {
        assert!(!is_denied(address), "{}", Ipv4Addr::from(address));
    }
    // An IPv6 source whose last bits are a denied IPv4 address.
    let v6 = ipv6(
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(FIRST)),
        protocol::TCP,
        &tcp(80, SYN, &[]),
    );
    assert_eq!(test_run(&generation, &v6), Verdict::Pass);
}

#[test]
fn a_long_list_that_is_changed_while_it_runs_judges_as_one_that_is_made_afresh() {
    let crowded = on_one_line(TAGS + 2);
    let names: Vec<String> = crowded
        .iter()
        .map(|address| Ipv4Addr::from(*address).to_string())
        .collect();
    let [full, .., over] = &names[..] else {
        panic!("the line is empty");
    };
    let neighbours = FIRST..FIRST + COUNT - crowded.len() as u32;
    let mut changing = Changing::new(&policy(neighbours.chain(crowded.iter().copied())));
    // An operator's entry, which is in the list, too.
    changing.deny("192.0.2.1/32", None);
    let mut running = changing.load();
    let none = &mut PortUpdates::default();
    let listed = ("100.64.0.9", true);
    let in_full_line = [(full.as_str(), true), (over.as_str(), true)];
    let mut expect = |changing: &Changing, what: &str, expected: &[(&str, bool)]| {
        running.change(changing.tables(), none).unwrap();
        let always = [listed].into_iter().chain(in_full_line);
        let expected: Vec<_> = always.chain(expected.iter().copied()).collect();
        assert_denied(changing, &running, what, &expected);
    };
    expect(
        &changing,
        "as loaded",
        &[("192.0.2.1", true), ("192.0.2.2", false)],
    );
    changing.deny("192.0.2.2/32", None);
    expect(
        &changing,
        "one more",
        &[("192.0.2.1", true), ("192.0.2.2", true)],
    );
    changing.entries.remove(0);
    expect(
        &changing,
        "the first revoked",
        &[("192.0.2.1", false), ("192.0.2.2", true)],
    );
    changing.deny("192.0.2.1/32", None);
    expect(
        &changing,
        "and denied again",
        &[("192.0.2.1", true), ("192.0.2.2", true)],
    );
    // A wider denial that does not expire replaces the addresses that it covers.
    changing.deny("100.64.0.0/24", None);
    expect(
        &changing,
        "covered",
        &[("100.64.0.200", true), ("100.64.1.9", true)],
    );
    changing.entries.pop();
    expect(
        &changing,
        "uncovered",
        &[("100.64.0.200", true), ("100.64.1.9", true)],
    );
    // All addresses of a full line are removed and added again.
    changing.deny("198.18.0.0/15", None);
    expect(&changing, "the line covered", &[("198.18.0.1", true)]);
    changing.entries.pop();
    expect(&changing, "the line uncovered", &[("198.18.0.1", false)]);
    changing.entries.clear();
    expect(
        &changing,
        "all revoked",
        &[("192.0.2.1", false), ("192.0.2.2", false)],
    );
}

#[test]
fn what_is_in_the_list_for_good_ends_once_only_a_denial_for_a_while_is_left() {
    let mut changing = Changing::new(&policy(FIRST..FIRST + COUNT));
    changing.deny("192.0.2.1/32", None);
    // Long enough to load two generations on a busy machine.
    changing.deny("192.0.2.1/32", Some(Duration::from_secs(15)));
    let mut running = changing.load();
    assert_denied(&changing, &running, "both", &[("192.0.2.1", true)]);
    changing.entries.remove(0);
    running
        .change(changing.tables(), &mut PortUpdates::default())
        .unwrap();
    assert_denied(
        &changing,
        &running,
        "only the denial that expires",
        &[("192.0.2.1", true)],
    );
    thread::sleep(Duration::from_secs(15));
    let expected = [("192.0.2.1", false), ("100.64.0.1", true)];
    assert_denied(&changing, &running, "after it has expired", &expected);
}

#[test]
fn nobody_passes_while_denials_for_good_become_denials_for_a_while() {
    const SHORTENED: u32 = 200;
    let crowded = on_one_line(TAGS + 4);
    let (inside, over) = crowded.split_at(TAGS);
    let (last, others) = inside.split_last().unwrap();
    let few = FIRST..FIRST + COUNT - 1_000;
    let mut changing = Changing::new(&policy(few.chain(others.iter().chain(over).copied())));
    let far = u32::from_be_bytes([223, 0, 0, 0]);
    // One of these addresses has the last place of a full line.
    let operators: Vec<u32> = (0..SHORTENED).map(|n| far + n).chain([*last]).collect();
    for lasts in [None, Some(Duration::from_secs(3_600))] {
        for address in &operators {
            changing.deny(&format!("{}/32", Ipv4Addr::from(*address)), lasts);
        }
    }
    let mut running = changing.load();
    let watched = [far, far + SHORTENED / 2, others[0], *last, over[0], over[3]];
    let frames = watched.map(frame);
    changing.entries.drain(..operators.len());
    let (passed, changed) = passes_while(&mut running, changing.tables(), &frames);
    changed.unwrap();
    assert_eq!(passed, [0; 6]);
    assert!(
        frames
            .iter()
            .all(|frame| test_run(&running, frame) == Verdict::Drop)
    );
}

#[test]
fn a_wider_denial_stays_until_there_is_room_for_what_it_covers() {
    let mut changing = Changing::new(&policy(FIRST..FIRST + COUNT));
    changing.deny("100.64.0.0/10", None);
    changing.deny("192.0.2.0/24", None);
    // Wider denials cover all listed addresses, so the generation has no list.
    let mut running = changing.load();
    changing.entries.clear();
    let frames: Vec<_> = (0..20).map(|n| frame(FIRST + n * 997)).collect();
    let (passed, changed) = passes_while(&mut running, changing.tables(), &frames);
    assert!(needs_new_generation(&changed.unwrap_err()));
    assert_eq!(passed, [0; 20]);
    let is_denied = |frame: &Vec<u8>| test_run(&running, frame) == Verdict::Drop;
    assert!(frames.iter().all(is_denied));
    let other = frame(u32::from_be_bytes([192, 0, 2, 1]));
    assert!(
        !is_denied(&other),
        "a denial that covers no listed address is removed at once"
    );
    let another = changing.load();
    let is_denied = |frame: &Vec<u8>| test_run(&another, frame) == Verdict::Drop;
    assert!(frames.iter().all(is_denied));
}
