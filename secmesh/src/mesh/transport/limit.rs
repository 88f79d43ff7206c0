//! Limits that hold before anybody has shown who it is, and a log that cannot be flooded.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;

/// Most handshakes at once.
const HANDSHAKES: usize = 64;
/// Places kept for the addresses of known peers, so that strangers who fill the others do not keep
/// the mesh apart.
const HANDSHAKES_KNOWN: usize = 16;
/// Most handshakes at once from one source.
const HANDSHAKES_PER_SOURCE: usize = 8;

/// New connections of one peer at once: each makes this node say again what matters.
const RECONNECTS: u64 = 16;
/// How long it takes until it may have another, in nanoseconds.
const RECONNECT_NS: u64 = 1_000_000_000;

/// How often a peer came up lately. Of one that cannot wait so long, nothing is lost that it would not lose again.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Reconnects {
    /// When all of them are paid for (GCRA), on the monotonic clock.
    paid_ns: u64,
}

impl Reconnects {
    /// Counts one more, if there may be one now.
    pub(super) fn admit(&mut self, now_ns: u64) -> bool {
        let paid_ns = self.paid_ns.max(now_ns).saturating_add(RECONNECT_NS);
        let may = paid_ns.saturating_sub(now_ns) <= RECONNECTS * RECONNECT_NS;
        if may {
            self.paid_ns = paid_ns;
        }
        may
    }
}

/// Why a handshake may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    Everywhere,
    Source,
}

/// Where handshakes come from, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source {
    address: IpAddr,
    known: bool,
}

#[derive(Debug)]
pub(super) struct HandshakeLimiter {
    strangers: Arc<Semaphore>,
    known: Arc<Semaphore>,
    sources: Arc<Mutex<HashMap<Source, usize>>>,
}

/// The right to one handshake, given back on drop.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    source: Source,
    sources: Arc<Mutex<HashMap<Source, usize>>>,
    _place: OwnedSemaphorePermit,
}

impl HandshakeLimiter {
    pub(super) fn new() -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(HANDSHAKES)),
            known: Arc::new(Semaphore::new(HANDSHAKES_KNOWN)),
            sources: Arc::default(),
        }
    }

    pub(super) fn begin(&self, source: IpAddr, known: bool) -> Result<HandshakePermit, Busy> {
        // The whole mesh may be in one /64 with a stranger: of a peer only its own address counts, apart from the
        // others there.
        let source = Source {
            address: if known {
                source.to_canonical()
            } else {
                source_of(source)
            },
            known,
        };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources
            .get(&source)
            .is_some_and(|n| *n >= HANDSHAKES_PER_SOURCE)
        {
            return Err(Busy::Source);
        }
        let strangers = Arc::clone(&self.strangers).try_acquire_owned().ok();
        let known = || {
            Arc::clone(&self.known)
                .try_acquire_owned()
                .ok()
                .filter(|_| known)
        };
        let place = strangers.or_else(known).ok_or(Busy::Everywhere)?;
        // Bounded by the number of places.
        *sources.entry(source).or_default() += 1;
        Ok(HandshakePermit {
            source,
            sources: Arc::clone(&self.sources),
            _place: place,
        })
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = sources.get_mut(&self.source) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which one host can fill at will.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        other => other,
    }
}

/// Lets one line per key and period into the log, and says how many were held back. Holds at most as
/// many keys as it was given; when there are more, those beyond share one line per period.
pub struct RateLimitedLog<K> {
    clock: Arc<dyn Clock>,
    period_ns: u64,
    max_keys: usize,
    /// `None` stands for the keys that found no place.
    seen: Mutex<HashMap<Option<K>, Seen>>,
}

#[derive(Debug)]
struct Seen {
    since_ns: u64,
    held_back: u64,
}

impl<K: Hash + Eq> RateLimitedLog<K> {
    /// A limiter of one line per key and `period`, for at most `max_keys` keys at a time.
    pub fn new(clock: Arc<dyn Clock>, period: Duration, max_keys: usize) -> Self {
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Self {
            clock,
            period_ns,
            max_keys,
            seen: Mutex::new(HashMap::new()),
        }
    }

    /// `Some(n)` if a line may be logged for `key`, where `n` lines were held back since the last.
    pub fn allow(&self, key: K) -> Option<u64> {
        let now = self.clock.mono_ns();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(key);
        if !seen.contains_key(&key) && seen.len() >= self.max_keys {
            seen.retain(|_, s| now.saturating_sub(s.since_ns) < self.period_ns);
            if seen.len() >= self.max_keys {
                key = None;
            }
        }
        match seen.entry(key) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Seen {
                    since_ns: now,
                    held_back: 0,
                });
                Some(0)
            }
            std::collections::hash_map::Entry::Occupied(mut place) => {
                let s = place.get_mut();
                if now.saturating_sub(s.since_ns) < self.period_ns {
                    s.held_back = s.held_back.saturating_add(1);
                    return None;
                }
                s.since_ns = now;
                Some(std::mem::take(&mut s.held_back))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn unix_us(&self) -> u64 {
            0
        }
        fn mono_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn one_line_per_key_and_period() {
        let clock = Arc::new(Hand(AtomicU64::new(5)));
        let log = RateLimitedLog::new(
            Arc::clone(&clock) as Arc<dyn Clock>,
            Duration::from_mins(1),
            2,
        );
        assert_eq!(log.allow("a"), Some(0));
        assert_eq!(
            (log.allow("a"), log.allow("a"), log.allow("b")),
            (None, None, Some(0))
        );
        // No place for more keys: the rest share one.
        assert_eq!((log.allow("c"), log.allow("d")), (Some(0), None));
        clock.0.fetch_add(60_000_000_000, Ordering::Relaxed);
        assert_eq!(log.allow("a"), Some(2));
        assert_eq!(log.allow("e"), Some(0));
        assert!(log.seen.lock().unwrap().len() <= 3);
    }

    #[test]
    fn handshakes_are_limited_by_source_and_in_all() {
        let limiter = HandshakeLimiter::new();
        let at = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut held: Vec<_> = (0..8)
            .map(|_| limiter.begin(at(1), false).unwrap())
            .collect();
        assert_eq!(limiter.begin(at(1), false).unwrap_err(), Busy::Source);
        held.pop();
        held.push(limiter.begin(at(1), false).unwrap());
        held.extend((0..56).map(|n| limiter.begin(at(10 + n), false).unwrap()));
        assert_eq!(limiter.begin(at(2), false).unwrap_err(), Busy::Everywhere);
        held.push(
            limiter
                .begin(at(2), true)
                .expect("places are kept for peers"),
        );
        drop(held);
        assert!(limiter.sources.lock().unwrap().is_empty());
        assert!(limiter.begin(at(2), false).is_ok());
    }

    #[test]
    fn a_stranger_in_the_peers_network_takes_no_place_of_theirs() {
        let limiter = HandshakeLimiter::new();
        let at = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
        let mut held: Vec<_> = (0..8)
            .map(|n| limiter.begin(at(n), false).unwrap())
            .collect();
        assert_eq!(limiter.begin(at(9), false).unwrap_err(), Busy::Source);
        for n in 20..22 {
            held.extend((0..8).map(|_| limiter.begin(at(n), true).unwrap()));
            assert_eq!(limiter.begin(at(n), true).unwrap_err(), Busy::Source);
        }
        drop(held);
        assert!(limiter.sources.lock().unwrap().is_empty());
    }

    #[test]
    fn a_peer_may_come_back_some_times_at_once_and_then_once_a_second() {
        let mut of = Reconnects::default();
        let second = RECONNECT_NS;
        let admitted = (0..40).filter(|_| of.admit(5 * second)).count();
        assert_eq!(admitted, 16);
        let later = 5 * second + 3 * second;
        assert_eq!((0..40).filter(|_| of.admit(later)).count(), 3);
        assert!(of.admit(100 * second));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }
}
