//! Is the source blocked, and does the allowlist say otherwise?

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    helpers::bpf_map_lookup_elem,
};
use secmesh_common::{
    block::{Addr4, Addr6, BlockEntry, Net4},
    config::Config,
    counters::{Counter, Counters},
    packet::{Family, Packet, Words},
};

use crate::{
    clock::now_ns,
    count::bump,
    maps::{ALLOW4, ALLOW6, BLOCK4, BLOCK6, PREFIX4, PREFIX6},
};

/// What the block maps say of a packet.
pub enum Verdict {
    /// Nothing.
    Clear,
    /// Blocked by an exact entry.
    Exact,
    /// Blocked by a prefix.
    Prefix,
    /// Blocked, but the allowlist wins.
    Allowed,
}

/// Adds to a counter that every CPU writes.
///
/// `AtomicU64::fetch_add` is missing on targets without compare-and-swap, which the BPF instruction set
/// of old kernels is; the plain atomic addition has always been there (Linux 3.18).
#[inline(always)]
fn atomic_add(counter: *mut u64, by: u64) {
    // SAFETY: callers pass an aligned u64 of a live map value; the result is not used, so it becomes one `lock` addition.
    let _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}

#[inline(always)]
pub fn bytes16(words: &Words) -> [u8; 16] {
    // SAFETY: four u32 and sixteen bytes have the same size, and every bit pattern is valid.
    unsafe { core::mem::transmute::<Words, [u8; 16]>(*words) }
}

/// Looks the source up: exact entry first, then prefix, then the allowlist if one of them hit.
#[inline(always)]
pub fn check(packet: &Packet, config: &Config, counters: &mut Counters) -> Verdict {
    let hit = match packet.family {
        Family::V4 => {
            let addr = packet.src[0].to_ne_bytes();
            check_exact(BLOCK4.get_ptr_mut(Addr4 { addr }), packet, config, counters)
                .then_some(Verdict::Exact)
                .or_else(|| {
                    if config.prefixes4 == 0 {
                        return None;
                    }
                    let key = Key::new(32, Net4 { addr, pad: [0; 4] });
                    let entry = lookup_trie(&PREFIX4, &key);
                    check_exact(entry, packet, config, counters).then_some(Verdict::Prefix)
                })
        }
        Family::V6 => {
            let addr = bytes16(&packet.src);
            check_exact(BLOCK6.get_ptr_mut(Addr6 { addr }), packet, config, counters)
                .then_some(Verdict::Exact)
                .or_else(|| {
                    if config.prefixes6 == 0 {
                        return None;
                    }
                    let key = Key::new(128, Addr6 { addr });
                    let entry = lookup_trie(&PREFIX6, &key);
                    check_exact(entry, packet, config, counters).then_some(Verdict::Prefix)
                })
        }
        Family::Other => None,
    };
    match hit {
        None => Verdict::Clear,
        Some(_) if allowed(packet) => Verdict::Allowed,
        Some(verdict) => verdict,
    }
}

/// Counts the packet on a live entry; `false` if there is no entry or it has ended.
#[inline(always)]
fn check_exact(
    entry: Option<*mut BlockEntry>,
    packet: &Packet,
    config: &Config,
    counters: &mut Counters,
) -> bool {
    let Some(entry) = entry else {
        return false;
    };
    let now = now_ns(config);
    // SAFETY: the pointer came from a map lookup of this program run, and only the kernel's own map code
    // and other runs of this program write there. The slot of a hash entry may be given to another key
    // meanwhile (no RCU grace before reuse); then the hit is counted on that one.
    let entry = unsafe { &mut *entry };
    if entry.expires_ns <= now {
        bump(counters, Counter::ExpiredBlock);
        return false;
    }
    if entry.hits == 0 {
        entry.first_hit_ns = now;
    }
    entry.last_hit_ns = now;
    // Every CPU writes these two, so they are atomic: they are what an operator reads.
    atomic_add(&raw mut entry.hits, 1);
    atomic_add(&raw mut entry.bytes, u64::from(packet.wire_len));
    true
}

#[inline(always)]
fn allowed(packet: &Packet) -> bool {
    let entry = match packet.family {
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
    };
    let Some(entry) = entry else {
        return false;
    };
    // SAFETY: the pointer came from a map lookup of this program run.
    let overrides = unsafe { &raw mut (*entry).overrides };
    atomic_add(overrides, 1);
    true
}

/// A trie's longest match as a pointer that may be written through, which `LpmTrie::get` does not give.
#[inline(always)]
fn lookup_trie<K, V, const N: usize>(trie: &LpmTrie<K, V, N>, key: &Key<K>) -> Option<*mut V> {
    let map = core::ptr::from_ref(trie).cast_mut().cast();
    // SAFETY: the loader puts the map in place of the definition's address; the key is of its type.
    let value = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()) };
    (!value.is_null()).then_some(value.cast())
}
