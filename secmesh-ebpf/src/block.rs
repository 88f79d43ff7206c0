//! Is the source blocked, and does the allowlist say otherwise?

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    helpers::bpf_map_lookup_elem,
};
use secmesh_common::{
    block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4, origin},
    config::Config,
    counters::{Counter, Counters},
    hot::HotSource,
    list::{GUARD_ALL, GUARD_DECISION},
    packet::{Family, Packet, Words},
    reason::Reason,
};

use crate::{
    clock::now_ns,
    count::bump,
    hot, list,
    maps::{ALLOW4, ALLOW6, BLOCK4, BLOCK6, PREFIX4, PREFIX6},
    quick,
};

/// Adds to a counter that every CPU writes.
///
/// `AtomicU64::fetch_add` is missing on targets without compare-and-swap, which the BPF instruction set
/// of old kernels is; the plain atomic addition has always been there (Linux 3.18).
#[inline(always)]
pub fn atomic_add(counter: *mut u64, by: u64) {
    // SAFETY: callers pass an aligned u64 of a live map value; the result is not used, so it becomes one `lock` addition.
    let _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}

#[inline(always)]
pub fn bytes16(words: &Words) -> [u8; 16] {
    // SAFETY: four u32 and sixteen bytes have the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute::<Words, [u8; 16]>(*words) }
}

/// What the block tables say of a packet.
pub enum Verdict {
    /// Nothing.
    Clear,
    /// It is blocked; the allowlist has still to be asked.
    Blocked(Reason),
    /// It is blocked, and it is known that the allowlist does not name its source.
    Vetted(Reason),
}

/// Looks the source up: decisions first, then lists. `seen` is what [`crate::quick::look`] said.
#[inline(always)]
pub fn check(packet: &Packet, seen: u64, config: &Config, counters: &mut Counters) -> Verdict {
    let guard = if seen & quick::UNSEEN != 0 {
        list::guard(packet, config)
    } else {
        seen & GUARD_ALL
    };
    if guard == 0 {
        return Verdict::Clear;
    }
    if guard & GUARD_DECISION != 0 {
        match exact(packet, config, counters) {
            Exact::No => {}
            Exact::Yes => return Verdict::Blocked(Reason::Exact),
            Exact::Hot => return Verdict::Vetted(Reason::Exact),
            Exact::Quarantined => return Verdict::Blocked(Reason::Quarantine),
        }
        if let Some(reason) = prefix(packet, config, counters) {
            return Verdict::Blocked(reason);
        }
    }
    if list::listed(packet, guard, seen & quick::FLOOD != 0, config, counters) {
        // The controller takes allowed addresses out of lists before it writes them.
        return if config.list_generation == config.allow_generation {
            Verdict::Vetted(Reason::List)
        } else {
            Verdict::Blocked(Reason::List)
        };
    }
    Verdict::Clear
}

/// What the exact maps say.
enum Exact {
    No,
    Yes,
    Hot,
    Quarantined,
}

#[inline(always)]
fn prefix(packet: &Packet, config: &Config, counters: &mut Counters) -> Option<Reason> {
    let entry = match packet.family {
        Family::V4 if config.prefixes4 != 0 => {
            let addr = packet.src[0].to_ne_bytes();
            lookup_trie(&PREFIX4, &Key::new(32, Net4 { addr, pad: [0; 4] }))
        }
        Family::V6 if config.prefixes6 != 0 => {
            let addr = bytes16(&packet.src);
            lookup_trie(&PREFIX6, &Key::new(128, Addr6 { addr }))
        }
        _ => None,
    }?;
    count_hit(entry, packet, config, counters).then_some(Reason::Prefix)
}

/// Counts the packet on a live entry; `false` if it has ended.
#[inline(always)]
fn count_hit(
    entry: *mut BlockEntry,
    packet: &Packet,
    config: &Config,
    counters: &mut Counters,
) -> bool {
    let now = now_ns(config);
    // SAFETY: the pointer came from a map lookup of this program run, and only the kernel's own map code
    // and other runs of this program write there. The slot of a hash entry may be given to another key
    // meanwhile (no RCU grace before reuse); then the hit is counted on that one.
    let entry = unsafe { &mut *entry };
    if entry.expires_ns <= now {
        bump(counters, Counter::ExpiredBlock);
        return false;
    }
    add_hits(entry, 1, u64::from(packet.wire_len), now);
    true
}

/// Books packets that an entry had dropped.
#[inline(always)]
pub fn add_hits(entry: &mut BlockEntry, hits: u64, bytes: u64, now: u64) {
    if entry.hits == 0 {
        entry.first_hit_ns = now;
    }
    entry.last_hit_ns = now;
    // Every CPU writes these two, so they are atomic: they are what an operator reads.
    atomic_add(&raw mut entry.hits, hits);
    atomic_add(&raw mut entry.bytes, bytes);
}

/// The exact maps, with the hot sources before them: a source that is being dropped costs one load and no
/// call, and its map entry gets its counts ten times a second.
#[inline(always)]
fn exact(packet: &Packet, config: &Config, counters: &mut Counters) -> Exact {
    let Some(hot) = hot::slot(&packet.src, packet.family, config) else {
        return Exact::No;
    };
    let (bytes, now) = (u64::from(packet.wire_len), now_ns(config));
    if hot::meets(hot, &packet.src, packet.family, now, config) {
        hot::count(hot, bytes);
        hot.last_ns = now;
        if !hot.is_stale(now) || hot::flush(hot, now) {
            return Exact::Hot;
        }
        return Exact::No;
    }
    // Before the entry and the allowlist are asked: the controller changes those first and this after, and a slot of the
    // old one is empty then.
    // SAFETY: a field of the configuration's entry, which is never freed while the program runs; aligned.
    let generation = unsafe { (&raw const config.hot_generation).read_volatile() };
    let Some(entry) = entry_of(&packet.src, packet.family as u32) else {
        return Exact::No;
    };
    if !count_hit(entry, packet, config, counters) {
        return Exact::No;
    }
    // SAFETY: as in `count_hit`.
    if unsafe { (*entry).flags } & 0xff == origin::QUARANTINE {
        // Never hot, since a hot source's reason is not kept; there are few of them.
        return Exact::Quarantined;
    }
    if is_allowed(packet) {
        // Never hot, so that the allowlist is asked for each of its packets.
        return Exact::Yes;
    }
    if hot.hits > 0 {
        hot::flush(hot, now);
    }
    // SAFETY: as in `count_hit`.
    let expires_ns = unsafe { (*entry).expires_ns };
    *hot = HotSource {
        addr: packet.src,
        lease: 0,
        expires_ns,
        last_ns: now,
        bytes: 0,
        hits: 0,
        flushed: HotSource::flush_time(now),
        generation,
        family: packet.family as u32,
    };
    Exact::Yes
}

/// The entry of exactly this address, whoever it blocks and until when.
#[inline(always)]
pub fn entry_of(addr: &Words, family: u32) -> Option<*mut BlockEntry> {
    if family == Family::V4 as u32 {
        BLOCK4.get_ptr_mut(Addr4 {
            addr: addr[0].to_ne_bytes(),
        })
    } else {
        BLOCK6.get_ptr_mut(Addr6 {
            addr: bytes16(addr),
        })
    }
}

/// Whether the allowlist names the source; counts that it won.
#[inline(always)]
pub fn allowed(packet: &Packet) -> bool {
    let Some(entry) = allow_entry(packet) else {
        return false;
    };
    // SAFETY: the pointer came from a map lookup of this program run.
    let overrides = unsafe { &raw mut (*entry).overrides };
    atomic_add(overrides, 1);
    true
}

#[inline(always)]
fn is_allowed(packet: &Packet) -> bool {
    allow_entry(packet).is_some()
}

#[inline(always)]
fn allow_entry(packet: &Packet) -> Option<*mut AllowEntry> {
    match packet.family {
        Family::V4 => {
            let net = Net4 {
                addr: packet.src[0].to_ne_bytes(),
                pad: [0; 4],
            };
            lookup_trie(&ALLOW4, &Key::new(32, net))
        }
        Family::V6 => {
            let net = Addr6 {
                addr: bytes16(&packet.src),
            };
            lookup_trie(&ALLOW6, &Key::new(128, net))
        }
        Family::Other => None,
    }
}

/// A trie's longest match as a pointer that may be written through, which `LpmTrie::get` does not give.
#[inline(always)]
fn lookup_trie<K, V, const N: usize>(trie: &LpmTrie<K, V, N>, key: &Key<K>) -> Option<*mut V> {
    let map = core::ptr::from_ref(trie).cast_mut().cast();
    // SAFETY: the loader puts the map in place of the definition's address; the key is of its type.
    let value = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()) };
    (!value.is_null()).then_some(value.cast())
}
