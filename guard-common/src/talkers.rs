//! Sampling for the top talkers: which packets belong to the sample, and which of the sources that share a place keeps
//! it.

use crate::{
    layout::{Conclusion, TALKER_SAMPLE, TalkerSlot},
    packet::{IpHeader, Packet},
    reason::Outcome,
    spread::GOLDEN,
};

/// The bits of a word that select one packet of [`TALKER_SAMPLE`].
const SAMPLE_BITS: u32 = TALKER_SAMPLE.ilog2();

const _: () = assert!(TALKER_SAMPLE.is_power_of_two());

/// The largest lead of a source over the others of its place. A source that stops sending loses its place after that
/// many sampled packets of other sources, however much it sent before. A source that sends more than all others
/// together keeps it.
const MOST_LEAD: u32 = 1 << 10;

/// Whether the packet with this number belongs to the sample: one in [`TALKER_SAMPLE`]. The selection has no period
/// that alternating sources could meet or avoid, and is unpredictable without the key. Multiples of the golden ratio
/// are distributed evenly for any stride (Weyl; Knuth, "The Art of Computer Programming", 6.4). The cost is one
/// multiplication per packet.
#[inline(always)]
pub const fn is_sampled(key: u64, counted: u64) -> bool {
    ((counted ^ key) as u32).wrapping_mul(GOLDEN) < 1 << (u32::BITS - SAMPLE_BITS)
}

impl TalkerSlot {
    /// Counts a sampled packet for its source, if the source has the place or takes it.
    #[inline(always)]
    pub fn vote(&mut self, packet: &Packet<impl IpHeader>, length: u64, conclusion: Conclusion) {
        let Packet { ip, transport } = packet;
        let (family, source) = (ip.family(), ip.source());
        // The counts are cleared here and not in the table, because the compiler would call a function to clear them
        // there.
        let Self {
            mut packets,
            mut dropped,
            mut bytes,
            mut dropped_for,
            mut dropped_at,
            mut dropped_port,
            mut would_drop,
            ..
        } = *self;
        if self.family == family as u8 && self.source == source {
            if self.lead < MOST_LEAD {
                self.lead += 1;
            }
        } else if self.lead > 0 {
            self.lead -= 1;
            return;
        } else {
            self.source = source;
            self.family = family as u8;
            self.lead = 1;
            (packets, dropped, would_drop, bytes) = (0, 0, 0, 0);
            (dropped_for, dropped_at, dropped_port) = (0, 0, 0);
        }
        if Outcome::has_drop_reason(conclusion.slot) {
            dropped += 1;
            would_drop += !Outcome::is_dropped(conclusion.slot) as u32;
            dropped_for = Outcome::reason_of(conclusion.slot);
            dropped_at = conclusion.service as u16;
            dropped_port = transport.place();
        }
        (self.packets, self.dropped, self.bytes) = (packets + 1, dropped, bytes + length);
        (self.dropped_for, self.dropped_at, self.dropped_port) =
            (dropped_for, dropped_at, dropped_port);
        self.would_drop = would_drop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::{Address, Family},
        fragment::FragmentId,
        packet::{IpFields, Transport},
        reason::{Mode, ModeBits, Reason},
    };

    const KEYS: [u64; 4] = [0, 0x0123_4567_89ab_cdef, 0x6775_6172_6420_7265, 1 << 31];

    fn source(n: u32) -> Address {
        Address::from_ipv4(n)
    }

    fn at_service_3(reason: Reason) -> Conclusion {
        Conclusion::new(3, reason, ModeBits::of(Mode::Enforce))
    }

    /// A connection request to port 8000.
    fn packet_from(n: u32) -> Packet<IpFields> {
        let ip = IpFields {
            family: Family::Ipv4,
            source: source(n),
            destination: source(1),
            fragment: FragmentId::NONE,
        };
        Packet {
            ip,
            transport: Transport::tcp(8_000, 0x02),
        }
    }

    fn vote(talker: &mut TalkerSlot, n: u32) {
        let dropped = at_service_3(Reason::ClosedPort);
        talker.vote(&packet_from(n), 100, dropped);
    }

    #[test]
    fn any_number_of_sources_that_take_turns_is_sampled_evenly() {
        const EACH: u64 = 200;
        for key in KEYS {
            for period in 1..=64u64 {
                let mut samples = vec![0u64; period as usize];
                for counted in 1..=EACH * TALKER_SAMPLE * period {
                    samples[(counted % period) as usize] += u64::from(is_sampled(key, counted));
                }
                let (least, most) = (samples.iter().min(), samples.iter().max());
                assert!(
                    *least.unwrap() > EACH / 2 && *most.unwrap() < EACH * 3 / 2,
                    "{key:?}, {period} sources: {least:?} to {most:?} samples, not {EACH}"
                );
            }
        }
    }

    #[test]
    fn the_sample_depends_on_the_key() {
        let sample = |key| (0..10_000).filter(move |counted| is_sampled(key, *counted));
        assert_ne!(
            sample(KEYS[1]).collect::<Vec<_>>(),
            sample(KEYS[2]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_source_that_sends_more_than_all_others_of_its_place_keeps_it() {
        let mut talker = TalkerSlot::default();
        for n in 0..100_000 {
            // Three of five packets come from one source, the others each from a new source.
            vote(&mut talker, if n % 5 < 3 { 7 } else { 1_000 + n });
        }
        assert_eq!(talker.source, source(7));
        assert_eq!((talker.packets, talker.dropped), (60_000, 60_000));
        assert_eq!(talker.bytes, 6_000_000);
    }

    #[test]
    fn a_place_has_the_last_drop_of_its_source_and_not_of_the_source_before() {
        let mut talker = TalkerSlot::default();
        vote(&mut talker, 7);
        talker.vote(&packet_from(7), 100, at_service_3(Reason::Allowed));
        let drops = |talker: &TalkerSlot| {
            let TalkerSlot {
                dropped,
                dropped_for,
                dropped_at,
                dropped_port,
                ..
            } = *talker;
            (dropped, dropped_for, dropped_at, dropped_port)
        };
        assert_eq!(drops(&talker), (1, Reason::ClosedPort as u8, 3, 8_000));
        for _ in 0..3 {
            talker.vote(&packet_from(8), 100, at_service_3(Reason::Allowed));
        }
        assert_eq!((talker.source, drops(&talker)), (source(8), (0, 0, 0, 0)));
    }

    #[test]
    fn drops_that_only_the_mode_let_pass_are_counted_apart() {
        let mut talker = TalkerSlot::default();
        vote(&mut talker, 7);
        let observed = Conclusion::new(3, Reason::ClosedPort, ModeBits::of(Mode::Observe));
        for _ in 0..2 {
            talker.vote(&packet_from(7), 100, observed);
        }
        assert_eq!(
            (talker.packets, talker.dropped, talker.would_drop),
            (3, 3, 2)
        );
    }

    #[test]
    fn a_silent_source_loses_its_place_however_much_it_sent() {
        let mut talker = TalkerSlot::default();
        for _ in 0..10_000_000 {
            vote(&mut talker, 7);
        }
        for _ in 0..MOST_LEAD {
            assert_eq!(talker.source, source(7));
            vote(&mut talker, 8);
        }
        vote(&mut talker, 8);
        assert_eq!((talker.source, talker.packets), (source(8), 1));
    }
}
