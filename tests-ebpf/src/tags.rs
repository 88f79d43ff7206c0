//! What a VLAN interface does at the end of a wire, where the kernel has none: tags go on behind the host and come off
//! before it, so an XDP program at the wire sees them.

use aya_ebpf::{
    Global,
    bindings::TC_ACT_OK,
    helpers::{bpf_skb_vlan_pop, bpf_skb_vlan_push},
    macros::classifier,
    programs::TcContext,
};

/// Tags of each frame: 1, or 2 for one within another.
#[unsafe(no_mangle)]
pub static TAGS: Global<u32> = Global::new(1);

/// 802.1Q and 802.1ad (`ETH_P_8021Q`, `ETH_P_8021AD`), as the helper takes them.
const CUSTOMER: u16 = 0x8100_u16.to_be();
const SERVICE: u16 = 0x88a8_u16.to_be();
/// The VLANs.
const INNER: u16 = 100;
const OUTER: u16 = 7;

/// Puts the tags on what leaves.
#[classifier]
pub fn tag(ctx: TcContext) -> i32 {
    // SAFETY: the helper changes this packet, of which nothing has been read.
    unsafe { bpf_skb_vlan_push(ctx.skb.skb, CUSTOMER, INNER) };
    if TAGS.load() > 1 {
        // SAFETY: as above.
        unsafe { bpf_skb_vlan_push(ctx.skb.skb, SERVICE, OUTER) };
    }
    TC_ACT_OK
}

/// Takes the tags off what comes; what has none is left as it is.
#[classifier]
pub fn untag(ctx: TcContext) -> i32 {
    // SAFETY: as in `tag`.
    unsafe { bpf_skb_vlan_pop(ctx.skb.skb) };
    // SAFETY: as above.
    unsafe { bpf_skb_vlan_pop(ctx.skb.skb) };
    TC_ACT_OK
}
