//! Challenges: answers to a SYN that only a host which receives them can answer. A flood with spoofed sources never
//! sees them.
//!
//! - The **weak** challenge is a bare ACK for a connection that does not exist. Its acknowledgment number is not the
//!   one that the client expects, so a client in SYN-SENT answers with a reset whose sequence number is that number,
//!   and soon sends its SYN again (RFC 9293, section 3.10.7.3). The number's lower half is a cookie. It lies at most
//!   65,535 before the client's initial sequence number, inside the window that stateful firewalls accept. A host that
//!   sent no SYN answers alike (section 3.10.7.1): the reset says that the source exists, not that it is a client.
//! - The **strong** challenge is a SYN-ACK whose sequence number is a cookie. Only a client acknowledges it. Its
//!   connection is then reset, and its next attempt passes.
//!
//! A cookie covers both addresses, both ports and the time, because the server keeps nothing per SYN (Bernstein: "SYN
//! cookies", 1996; RFC 4987, section 3.6).

use crate::{
    address::{Address, Family},
    siphash::{self, SipKey},
};

/// The addresses and ports of a TCP segment that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A period in which a segment gets the same cookie: about four seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookiePeriod(u32);

/// A period as a power of two of the units of [`crate::gcra`]: 4.3 s.
const PERIOD: u32 = 38;

impl CookiePeriod {
    /// `now`: in the units of [`crate::gcra`].
    #[inline(always)]
    pub const fn of(now: u64) -> Self {
        Self((now >> PERIOD) as u32)
    }

    #[inline(always)]
    const fn before(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// A cookie of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u32);

impl Cookie {
    /// The cookie of a segment with these endpoints.
    #[inline(always)]
    pub const fn of(
        key: SipKey,
        endpoints: &Endpoints,
        CookiePeriod(period): CookiePeriod,
    ) -> Self {
        let Endpoints {
            family,
            source,
            destination,
            source_port,
            destination_port,
        } = *endpoints;
        let ports = (source_port as u64) << 48 | (destination_port as u64) << 32 | period as u64;
        let hash = match family {
            Family::Ipv4 => siphash::hash(key, [source.low << 32 | destination.low, ports]),
            Family::Ipv6 => siphash::hash(
                key,
                [
                    source.high,
                    source.low,
                    destination.high,
                    destination.low,
                    ports,
                ],
            ),
        };
        Self(hash as u32)
    }

    /// The acknowledgment number of the weak challenge to a SYN with this sequence number: the greatest up to that
    /// number whose lower half is the cookie's.
    #[inline(always)]
    pub const fn weak_acknowledgment(self, sequence: u32) -> u32 {
        sequence.wrapping_sub(sequence.wrapping_sub(self.0) & 0xffff)
    }
}

/// Whether a reset answers a weak challenge of this period or of the one before. A blind guess succeeds with a
/// probability of 1 in 32,768.
#[inline(always)]
pub const fn answers_weak(
    key: SipKey,
    endpoints: &Endpoints,
    period: CookiePeriod,
    sequence: u32,
) -> bool {
    let Cookie(now) = Cookie::of(key, endpoints, period);
    let Cookie(before) = Cookie::of(key, endpoints, period.before());
    let low = sequence as u16;
    low == now as u16 || low == before as u16
}

/// Whether an acknowledgment answers a strong challenge of this period or of the one before. A blind guess succeeds with
/// a probability of 1 in 2^31.
#[inline(always)]
pub const fn answers_strong(
    key: SipKey,
    endpoints: &Endpoints,
    period: CookiePeriod,
    acknowledgment: u32,
) -> bool {
    let Cookie(now) = Cookie::of(key, endpoints, period);
    let Cookie(before) = Cookie::of(key, endpoints, period.before());
    let acknowledged = acknowledgment.wrapping_sub(1);
    acknowledged == now || acknowledged == before
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SipKey = SipKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
    const ENDPOINTS: Endpoints = Endpoints {
        family: Family::Ipv4,
        source: Address::from_ipv4(0xc633_6407),
        destination: Address::from_ipv4(0xcb00_710a),
        source_port: 40_000,
        destination_port: 443,
    };
    const PERIOD_LENGTH: u64 = 1 << PERIOD;

    fn sequences() -> impl Iterator<Item = u32> {
        let ends = [0, 1, 0xffff, 0x1_0000, u32::MAX - 1, u32::MAX];
        ends.into_iter()
            .chain((0..10_000u32).map(|n| n.wrapping_mul(0x9e37_79b9)))
    }

    #[test]
    fn a_weak_challenge_is_never_acceptable_and_within_a_window_before_the_syn() {
        let cookie = Cookie::of(KEY, &ENDPOINTS, CookiePeriod(7));
        for sequence in sequences() {
            let acknowledgment = cookie.weak_acknowledgment(sequence);
            assert_eq!(acknowledgment as u16, cookie.0 as u16);
            // RFC 9293, section 3.10.7.3: SEG.ACK =< ISS is not acceptable.
            assert!(sequence.wrapping_sub(acknowledgment) < 1 << 16);
        }
    }

    #[test]
    fn an_answer_counts_for_one_to_two_periods() {
        for start in [PERIOD_LENGTH, PERIOD_LENGTH * ((1 << 25) - 1)] {
            let sent = CookiePeriod::of(start);
            let cookie = Cookie::of(KEY, &ENDPOINTS, sent);
            let weak = |period| {
                answers_weak(
                    KEY,
                    &ENDPOINTS,
                    period,
                    cookie.weak_acknowledgment(0xdead_beef),
                )
            };
            let strong = |period| answers_strong(KEY, &ENDPOINTS, period, cookie.0.wrapping_add(1));
            for (periods, answers) in [(0, true), (1, true), (2, false)] {
                let period = CookiePeriod::of(start + periods * PERIOD_LENGTH);
                assert_eq!(
                    (weak(period), strong(period)),
                    (answers, answers),
                    "{periods}"
                );
            }
        }
    }

    #[test]
    fn a_cookie_counts_for_its_own_endpoints_alone() {
        let period = CookiePeriod(7);
        let Cookie(cookie) = Cookie::of(KEY, &ENDPOINTS, period);
        let source = Address::from_ipv4(0xc633_6408);
        let high = Address { high: 1, low: 0 };
        for other in [
            Endpoints {
                source,
                ..ENDPOINTS
            },
            Endpoints {
                destination: source,
                ..ENDPOINTS
            },
            Endpoints {
                source_port: 40_001,
                ..ENDPOINTS
            },
            Endpoints {
                destination_port: 80,
                ..ENDPOINTS
            },
            Endpoints {
                family: Family::Ipv6,
                ..ENDPOINTS
            },
            Endpoints {
                family: Family::Ipv6,
                source: high,
                ..ENDPOINTS
            },
        ] {
            assert!(
                !answers_strong(KEY, &other, period, cookie.wrapping_add(1)),
                "{other:?}"
            );
            assert!(!answers_weak(KEY, &other, period, cookie), "{other:?}");
        }
        assert!(!answers_strong(
            SipKey([1, 2]),
            &ENDPOINTS,
            period,
            cookie.wrapping_add(1)
        ));
    }

    #[test]
    fn blind_guesses_succeed_by_chance_alone() {
        let guesses = 1_000_000u32;
        let lucky = (0..guesses).filter(|n| {
            let endpoints = Endpoints {
                source: Address::from_ipv4(*n),
                ..ENDPOINTS
            };
            let guess = n.wrapping_mul(0x9e37_79b9);
            assert!(!answers_strong(KEY, &endpoints, CookiePeriod(7), guess));
            answers_weak(KEY, &endpoints, CookiePeriod(7), guess)
        });
        // 30.5 are expected; 60 are five standard deviations above that.
        let lucky = lucky.count();
        assert!((5..60).contains(&lucky), "{lucky}");
    }
}
