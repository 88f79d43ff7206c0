//! Flow records: both directions counted into one table, and the sweep that finds what has gone silent.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg},
    mem::size_of,
};

use aya_ebpf::{
    bindings::{
        __sk_buff,
        xdp_action::{XDP_ABORTED, XDP_PASS},
        xdp_md,
    },
    helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use secmesh_common::{
    account::place,
    config::{Config, features::FLOWS as ENABLED},
    counters::{Counter, Counters},
    flow::{
        Arrival, FIRM, FlowEnd, FlowExport, FlowLimits, FlowPlace, FlowSlot, LOCKED, SWEEP_SLICE,
        Step, SweepOrder, flow_place, state,
    },
    lease::flow_of,
    packet::{
        Bytes, Family, Fragment, MAX_OFFSET, PROTO_TCP, Packet, parse_addresses, parse_payload,
    },
};

use crate::{
    clock::now_ns,
    count::{bump, counters},
    frame::{Frame, load_word},
    maps::{CONFIG, FLOW, FLOW_MASK, FLOWS, HASH_SEED, SOURCES},
};

/// "Go on with the next program" (`TC_ACT_UNSPEC` and `TCX_NEXT`, include/uapi/linux/bpf.h).
const NEXT: i32 = -1;
/// Bytes of the VLAN tag that the card adds.
const VLAN_TAG: u32 = 4;
/// No frame is longer than this, so that lengths stay in a word.
const LONGEST: u32 = 1 << 24;

/// Counts a packet that came in and passes.
#[inline(always)]
pub fn incoming(ctx: &XdpContext, packet: &Packet, config: &Config, counters: &mut Counters) {
    if config.features & ENABLED == 0 {
        return;
    }
    let _place: u32 = secmesh_incoming(ctx.ctx, packet, config, counters);
}

/// [`incoming`] of a packet that its source's account has: the next one like it finds its flow without looking for it.
#[inline(always)]
pub fn routine(ctx: &XdpContext, packet: &Packet, config: &Config, counters: &mut Counters) {
    if config.features & ENABLED == 0 {
        return;
    }
    let flow = secmesh_incoming(ctx.ctx, packet, config, counters);
    let place = place(packet, HASH_SEED.load());
    let Some(slot) = SOURCES.get_ptr_mut(place.first) else {
        return;
    };
    // SAFETY: as in `crate::observe::claim`.
    let slot = unsafe { &mut *slot };
    if slot.holds(place.tag) {
        *flow_of(slot, packet.proto) = flow;
    }
}

/// [`incoming`] for those who want flows; apart, so that the others do not carry its code.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_incoming(
    ctx: *mut xdp_md,
    packet: *const Packet,
    config: *const Config,
    counters: *mut Counters,
) -> u32 {
    if packet.is_null() || config.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: the callers pass a packet on their stack, all of it written, and entries of two maps; the verifier
    // checks that.
    let (packet, config, counters) = unsafe { (&*packet, &*config, &mut *counters) };
    let ctx = XdpContext::new(ctx);
    let word = tcp_word(&Frame::new(&ctx), packet);
    let mut arrival = Arrival {
        now_ns: now_ns(config),
        ifindex: ctx.ingress_ifindex() as u32,
        outgoing: 0,
        tcp_len: 0,
        window: 0,
        segments: 0,
        segment_size: 0,
    }
    .with_tcp(word.to_ne_bytes());
    record(packet, &mut arrival, config, counters)
}

/// Bytes 12 to 15 of the TCP header as they stand in the frame; 0 if there is none.
#[inline(always)]
fn tcp_word<B: Bytes>(bytes: &B, packet: &Packet) -> u32 {
    let at = usize::from(packet.l4);
    if packet.proto != PROTO_TCP || at > MAX_OFFSET || matches!(packet.fragment, Fragment::Later) {
        return 0;
    }
    bytes.load_words::<1>(at + 12).map_or(0, |[word]| word)
}

/// Counts a packet that leaves into its flow: a function of its own to the verifier.
///
/// `segments` has the number of packets that the card makes of this one in its upper half and the payload
/// of each in its lower half. The answer means nothing; the verifier wants one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_flow(
    packet: *const Packet,
    tcp_word: u32,
    ifindex: u32,
    segments: u64,
) -> u8 {
    let (Some(counters), Some(config)) = (counters(), CONFIG.get(0)) else {
        return 0;
    };
    if packet.is_null() {
        return 0;
    }
    // SAFETY: callers pass a packet on their stack, all of it written; the verifier checks that.
    let packet = unsafe { &*packet };
    let mut arrival = Arrival {
        now_ns: now_ns(config),
        ifindex,
        outgoing: 1,
        tcp_len: 0,
        window: 0,
        segments: (segments >> 32) as u32,
        segment_size: segments as u32,
    }
    .with_tcp(tcp_word.to_ne_bytes());
    let _place: u32 = record(packet, &mut arrival, config, counters);
    0
}

/// `CLOCK_MONOTONIC` to the nanosecond, at the price of a call.
#[inline(always)]
fn fine_now_ns() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts the packet; says where its flow's first place is.
#[inline(always)]
fn record(packet: &Packet, arrival: &mut Arrival, config: &Config, counters: &mut Counters) -> u32 {
    let place = flow_place(packet, arrival.ifindex, HASH_SEED.load(), FLOW_MASK.load());
    let limits = limits(config);
    let Some((slot, fresh)) = claim(&place, arrival.now_ns, &limits, counters) else {
        bump(counters, Counter::FlowContended);
        return place.first;
    };
    let coarse_ns = arrival.now_ns;
    if fresh || slot.is_fine() {
        arrival.now_ns = fine_now_ns();
    }
    if fresh {
        begin(slot, &place, packet, arrival, counters);
    } else {
        match slot.next_step(packet, coarse_ns, &limits) {
            Step::Count => {}
            Step::Late => return place.first,
            step => {
                if !lock(slot, place.tag) {
                    bump(counters, Counter::FlowContended);
                    return place.first;
                }
                if let Step::Record(end) = step {
                    export(slot, place.tag, arrival.now_ns, end, counters);
                }
                arrival.now_ns = fine_now_ns();
                begin(slot, &place, packet, arrival, counters);
            }
        }
    }
    let way = slot.way(&place);
    if let Some(end) = slot.count(way, packet, arrival)
        && lock(slot, place.tag)
    {
        export(slot, place.tag, arrival.now_ns, end, counters);
        slot.state = state::ENDED;
        unlock(slot, place.tag);
    }
    place.first
}

#[inline(always)]
fn limits(config: &Config) -> FlowLimits {
    FlowLimits {
        idle: config.flow_idle,
        active: config.flow_active,
    }
}

/// The flow's slot, and whether it is new in it (then it is locked); `None` if busier flows hold both.
#[inline(always)]
fn claim(
    place: &FlowPlace,
    now_ns: u64,
    limits: &FlowLimits,
    counters: &mut Counters,
) -> Option<(&'static mut FlowSlot, bool)> {
    let first = FLOW.get_ptr_mut(place.first)?;
    // SAFETY: array entries are never freed while the program runs. Other CPUs may write the same slot; its
    // fields are independent counters, and whose they are is changed under a lock (secmesh_common::flow).
    let first = unsafe { &mut *first };
    if first.tag == place.tag {
        return Some((first, false));
    }
    let second = FLOW.get_ptr_mut(place.second)?;
    // SAFETY: as above; if both places are one slot, `first` is not used after this.
    let second = unsafe { &mut *second };
    if second.tag == place.tag {
        return Some((second, false));
    }
    if first.tag == LOCKED || second.tag == LOCKED {
        // It may be this flow that another CPU is moving in there.
        return None;
    }
    let (one, two) = (
        first.resistance(now_ns, limits),
        second.resistance(now_ns, limits),
    );
    let (weaker, resistance) = if one <= two {
        (first, one)
    } else {
        (second, two)
    };
    if resistance != 0 {
        if resistance != FIRM {
            weaker.score = resistance - 1;
        }
        return None;
    }
    let holder = weaker.tag;
    if !lock(weaker, holder) {
        return None;
    }
    if let Some(end) = weaker.displaced(holder, now_ns, limits) {
        export(weaker, holder, now_ns, end, counters);
    }
    Some((weaker, true))
}

/// Begins a flow in a locked slot and unlocks it.
#[inline(always)]
fn begin(
    slot: &mut FlowSlot,
    place: &FlowPlace,
    packet: &Packet,
    arrival: &Arrival,
    counters: &mut Counters,
) {
    *slot = FlowSlot::begin(LOCKED, place, packet, arrival);
    unlock(slot, place.tag);
    bump(counters, Counter::FlowStarted);
}

/// Takes the right to change whose slot it is; `false` if another CPU has it.
#[inline(always)]
fn lock(slot: &mut FlowSlot, holder: u64) -> bool {
    // SAFETY: an aligned u64 of a live map value; compare-and-exchange came with Linux 5.12.
    let (_, exchanged) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut slot.tag,
            holder,
            LOCKED,
        )
    };
    exchanged
}

/// Gives a locked slot to `tag`; everything written before is seen by who sees the tag.
#[inline(always)]
fn unlock(slot: &mut FlowSlot, tag: u64) {
    // SAFETY: as in `lock`.
    let _locked: u64 =
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&raw mut slot.tag, tag) };
}

/// Records a locked slot's flow; `false` if the ring was full.
#[inline(always)]
fn export(slot: &FlowSlot, tag: u64, now_ns: u64, end: FlowEnd, counters: &mut Counters) -> bool {
    if !reserve_and_write(slot, tag, now_ns, end) {
        bump(counters, Counter::FlowRingFull);
        return false;
    }
    bump(counters, Counter::FlowExported);
    true
}

#[inline(always)]
fn reserve_and_write(slot: &FlowSlot, tag: u64, now_ns: u64, end: FlowEnd) -> bool {
    let Some(mut entry) = FLOWS.reserve(0) else {
        return false;
    };
    let out: *mut FlowExport = entry.as_mut_ptr();
    // SAFETY: the reservation has the size of a record, is ours alone until it is submitted, and every field
    // of it is written here.
    unsafe {
        (*out).slot = *slot;
        (*out).slot.tag = tag;
        (*out).ended_ns = now_ns;
        (*out).end = end as u32;
        (*out).pad = 0;
    }
    entry.submit(0);
    true
}

/// Counts a packet that leaves.
#[classifier]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the classifier attribute's wrapper hands the context over"
)]
pub fn secmesh_egress(ctx: TcContext) -> i32 {
    let Some(config) = CONFIG.get(0) else {
        return NEXT;
    };
    if config.features & ENABLED == 0 {
        return NEXT;
    }
    let mut packet = Packet::empty(0);
    if secmesh_read(ctx.skb.skb, &raw mut packet) == 0 {
        return NEXT;
    }
    let word = secmesh_read_rest(ctx.skb.skb, &raw mut packet);
    if matches!(packet.family, Family::Other) {
        return NEXT;
    }
    let skb = ctx.skb.skb;
    // SAFETY: fields of the context, which the kernel makes loads of (Linux 5.1 and 5.7).
    let (ifindex, count, size) = unsafe { ((*skb).ifindex, (*skb).gso_segs, (*skb).gso_size) };
    let segments = (u64::from(count) << 32) | u64::from(size);
    let _counted: u8 = secmesh_flow(&raw const packet, word, ifindex, segments);
    NEXT
}

/// Parses a packet that leaves up to its addresses into `out`; 0 if it is no flow's.
///
/// In two steps, of which this is the first, so that the verifier walks each once: in one, Linux 6.1 walked the
/// extension headers for every way that leads through tags and addresses, 247,536 instructions in all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_read(skb: *mut __sk_buff, out: *mut Packet) -> u32 {
    if out.is_null() {
        return 0;
    }
    let Ok(mut packet) = parse_addresses(&Leaving { skb }) else {
        unreadable();
        return 0;
    };
    if matches!(packet.family, Family::Other) {
        return 0;
    }
    // SAFETY: a field of the context.
    if unsafe { (*skb).vlan_present } != 0 {
        packet.wire_len += VLAN_TAG;
    }
    // SAFETY: the one caller passes a packet on its stack.
    unsafe { out.write(packet) };
    1
}

/// Parses the rest of what [`secmesh_read`] has begun; the family is [`Family::Other`] after that if it is
/// malformed. Gives the word of its TCP header that [`secmesh_flow`] takes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_read_rest(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written; the verifier checks that.
    let packet = unsafe { &mut *packet };
    // Never so: it tells the verifier, which knows nothing of the caller, that offsets are small.
    if packet.l3 >= 64 || packet.l4 >= 128 {
        packet.family = Family::Other;
        return 0;
    }
    let leaving = Leaving { skb };
    if parse_payload(&leaving, packet).is_err() {
        packet.family = Family::Other;
        unreadable();
        return 0;
    }
    tcp_word(&leaving, packet)
}

#[inline(always)]
fn unreadable() {
    if let Some(counters) = counters() {
        bump(counters, Counter::FlowUnreadable);
    }
}

/// A socket buffer as a source of bytes: what lies beyond its first part is fetched by a call. Nothing is
/// moved in it, so who comes after sees it as it was.
struct Leaving {
    skb: *mut __sk_buff,
}

impl Leaving {
    #[inline(always)]
    fn first(&self, offset: usize, length: usize) -> Option<usize> {
        // SAFETY: fields of the context, which the verifier knows as the packet's bounds.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let start = data + offset;
        (start + length <= end).then_some(start)
    }

    #[inline(always)]
    fn fetch<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the helper writes at most N bytes to the array on our stack (Linux 4.5).
        let status = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        (status == 0).then_some(bytes)
    }
}

impl Bytes for Leaving {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        match self.first(offset, N) {
            // SAFETY: compared with the end of the packet; [u8; N] has no alignment.
            Some(start) => Some(unsafe { (start as *const [u8; N]).read() }),
            None => self.fetch(offset),
        }
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        if let Some(start) = self.first(offset, 4 * N) {
            let mut n = 0;
            while n < N {
                words[n] = load_word(start + 4 * n);
                n += 1;
            }
            return Some(words);
        }
        // SAFETY: the helper writes 4 N bytes to the array on our stack.
        let status = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                words.as_mut_ptr().cast(),
                4 * N as u32,
            )
        };
        (status == 0).then_some(words)
    }

    #[inline(always)]
    fn wire_len_at_least(&self, length: usize) -> bool {
        self.first_len() as usize >= length
    }

    #[inline(always)]
    fn first_len(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.skb).len }.min(LONGEST)
    }
}

/// Records flows that have gone silent, in [`SWEEP_SLICE`] slots from the one that the packet's first bytes
/// name ([`SweepOrder`]), and writes there how far it came.
///
/// Never attached: the controller runs it with `BPF_PROG_TEST_RUN`. So slots are freed by the kernel's own
/// programs only, under their lock, and the table is never copied out.
#[xdp]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the xdp attribute's wrapper hands the context over"
)]
pub fn secmesh_sweep(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + size_of::<SweepOrder>() > ctx.data_end() {
        return XDP_ABORTED;
    }
    let order = start as *mut SweepOrder;
    // SAFETY: inside the packet, as compared above; the start of a test run's packet is aligned.
    let from = unsafe { (*order).from };
    let (mut recorded, mut used, mut next) = (0, 0, from);
    for n in 0..SWEEP_SLICE {
        let answer = secmesh_sweep_slot(from.wrapping_add(n));
        if answer == SWEEP_FULL {
            break;
        }
        next = next.wrapping_add(1);
        recorded += u32::from(answer & SWEEP_RECORDED);
        used += u32::from(answer >> 1 & 1);
    }
    // SAFETY: as above.
    unsafe {
        (*order).next = next;
        (*order).recorded = recorded;
        (*order).used = used;
    }
    XDP_PASS
}

/// The slot's flow was recorded.
const SWEEP_RECORDED: u8 = 1;
/// The slot holds a flow.
const SWEEP_USED: u8 = 2;
/// The ring is full: the slot has to be looked at again.
const SWEEP_FULL: u8 = 4;

/// One step of the sweep.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_sweep_slot(index: u32) -> u8 {
    let (Some(counters), Some(config)) = (counters(), CONFIG.get(0)) else {
        return 0;
    };
    let Some(slot) = FLOW.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: as in `claim`.
    let slot = unsafe { &mut *slot };
    let tag = slot.tag;
    if tag == 0 || tag == LOCKED {
        return 0;
    }
    let now_ns = fine_now_ns();
    let Some(end) = slot.due(now_ns, &limits(config)) else {
        return SWEEP_USED;
    };
    if !lock(slot, tag) {
        return SWEEP_USED;
    }
    if slot.state == state::ENDED {
        unlock(slot, 0);
        return 0;
    }
    if !reserve_and_write(slot, tag, now_ns, end) {
        unlock(slot, tag);
        return SWEEP_FULL;
    }
    unlock(slot, 0);
    bump(counters, Counter::FlowExported);
    SWEEP_RECORDED
}
