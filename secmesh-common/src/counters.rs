//! Per-CPU packet counters by reason. They are the truth; events are samples.

/// Most that [`Counters::listed_lately`] can be.
pub const LISTED_MOST: u64 = 128;
/// From here on it is a flood of listed sources: some nine packets in ten are theirs.
pub const LISTED_FLOOD: u64 = 64;
/// What a packet of somebody else takes from it; one of a listed source adds one.
pub const LISTED_LESS: u64 = 8;

/// [`Counters::lately`]: it was dropped as a hot source's.
pub const LATELY_HOT: u64 = 1;
/// [`Counters::lately`]: it passed as one of many, with a lease ([`crate::lease`]) or bringing one.
pub const LATELY_LEASED: u64 = 2;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident / $variant:ident,)+) => {
        /// One CPU's counters; `bpftool map dump` prints the field names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[repr(C)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// How much of what came lately was of listed sources, 0 to [`LISTED_MOST`]. No count: a sum over
            /// CPUs means nothing, and none is made.
            pub listed_lately: u64,
            /// What became of the last plain packet here, for the next one is likely to be like it: [`LATELY_HOT`],
            /// [`LATELY_LEASED`], or something else. No count, either.
            pub lately: u64,
        }

        /// Names one field of [`Counters`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All counters, in the order of their fields.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The field's name, as metrics and `status` print it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($name),)+
                }
            }
        }

        impl Counters {
            /// The field that `counter` names.
            pub const fn get(&self, counter: Counter) -> u64 {
                match counter {
                    $(Counter::$variant => self.$name,)+
                }
            }

            /// The field that `counter` names.
            #[inline(always)]
            pub fn get_mut(&mut self, counter: Counter) -> &mut u64 {
                match counter {
                    $(Counter::$variant => &mut self.$name,)+
                }
            }

            /// Adds another CPU's counters to these.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
            }
        }
    };
}

counters! {
    /// Packets seen.
    rx_packets / RxPackets,
    /// Bytes seen.
    rx_bytes / RxBytes,
    /// Packets passed because nothing spoke against them.
    pass / Pass,
    /// Packets passed that are neither IPv4 nor IPv6.
    pass_other / PassOther,
    /// Packets passed because the allowlist won over a block.
    pass_allowlist / PassAllowlist,
    /// Packets dropped by an exact block.
    drop_exact / DropExact,
    /// Packets dropped by a prefix block.
    drop_prefix / DropPrefix,
    /// Packets that an exact block would have dropped in enforce mode.
    would_drop_exact / WouldDropExact,
    /// Packets that a prefix block would have dropped in enforce mode.
    would_drop_prefix / WouldDropPrefix,
    /// Malformed packets dropped (their reason is counted beside).
    drop_malformed / DropMalformed,
    /// Malformed packets that would have been dropped in enforce mode.
    would_drop_malformed / WouldDropMalformed,
    /// Malformed: Ethernet header.
    malformed_ethernet / MalformedEthernet,
    /// Malformed: VLAN tag.
    malformed_vlan / MalformedVlan,
    /// Malformed: IPv4 header.
    malformed_ipv4_header / MalformedIpv4Header,
    /// Malformed: IP version.
    malformed_ip_version / MalformedIpVersion,
    /// Malformed: IP length.
    malformed_ip_length / MalformedIpLength,
    /// Malformed: IPv6 header.
    malformed_ipv6_header / MalformedIpv6Header,
    /// Malformed: IPv6 extension headers.
    malformed_extension_headers / MalformedExtensionHeaders,
    /// Malformed: TCP header.
    malformed_tcp / MalformedTcp,
    /// Malformed: UDP header.
    malformed_udp / MalformedUdp,
    /// Malformed: ICMP header.
    malformed_icmp / MalformedIcmp,
    /// Packets met a block that had already ended.
    expired_block / ExpiredBlock,
    /// Events sent to the controller.
    events_sent / EventsSent,
    /// Events not sent because the CPU's budget was used up.
    events_over_budget / EventsOverBudget,
    /// Events not sent because the ring was full.
    events_ring_full / EventsRingFull,
    /// Packets not accounted because both slots of their source belong to busier sources.
    sources_contended / SourcesContended,
    /// Packets dropped for the reason `list`.
    drop_list / DropList,
    /// Packets that list would have dropped in enforce mode.
    would_drop_list / WouldDropList,
    /// Packets dropped for the reason `land`.
    drop_land / DropLand,
    /// Packets that land would have dropped in enforce mode.
    would_drop_land / WouldDropLand,
    /// Packets dropped for the reason `tcp_flags`.
    drop_tcp_flags / DropTcpFlags,
    /// Packets that `tcp_flags` would have dropped in enforce mode.
    would_drop_tcp_flags / WouldDropTcpFlags,
    /// Packets dropped for the reason `tiny_fragment`.
    drop_tiny_fragment / DropTinyFragment,
    /// Packets that `tiny_fragment` would have dropped in enforce mode.
    would_drop_tiny_fragment / WouldDropTinyFragment,
    /// Packets dropped for the reason `fragment_flood`.
    drop_fragment_flood / DropFragmentFlood,
    /// Packets that `fragment_flood` would have dropped in enforce mode.
    would_drop_fragment_flood / WouldDropFragmentFlood,
    /// Packets dropped for the reason `smurf`.
    drop_smurf / DropSmurf,
    /// Packets that smurf would have dropped in enforce mode.
    would_drop_smurf / WouldDropSmurf,
    /// Packets dropped for the reason `amplification`.
    drop_amplification / DropAmplification,
    /// Packets that amplification would have dropped in enforce mode.
    would_drop_amplification / WouldDropAmplification,
    /// Packets dropped for the reason `ack_flood`.
    drop_ack_flood / DropAckFlood,
    /// Packets that `ack_flood` would have dropped in enforce mode.
    would_drop_ack_flood / WouldDropAckFlood,
    /// Packets dropped for the reason `rst_flood`.
    drop_rst_flood / DropRstFlood,
    /// Packets that `rst_flood` would have dropped in enforce mode.
    would_drop_rst_flood / WouldDropRstFlood,
    /// Packets dropped for the reason `fin_flood`.
    drop_fin_flood / DropFinFlood,
    /// Packets that `fin_flood` would have dropped in enforce mode.
    would_drop_fin_flood / WouldDropFinFlood,
    /// Packets dropped for the reason `syn_ack_flood`.
    drop_syn_ack_flood / DropSynAckFlood,
    /// Packets that `syn_ack_flood` would have dropped in enforce mode.
    would_drop_syn_ack_flood / WouldDropSynAckFlood,
    /// Packets dropped for the reason `syn_flood`.
    drop_syn_flood / DropSynFlood,
    /// Packets that `syn_flood` would have dropped in enforce mode.
    would_drop_syn_flood / WouldDropSynFlood,
    /// Packets dropped for the reason `udp_flood`.
    drop_udp_flood / DropUdpFlood,
    /// Packets that `udp_flood` would have dropped in enforce mode.
    would_drop_udp_flood / WouldDropUdpFlood,
    /// Packets dropped for the reason `icmp_flood`.
    drop_icmp_flood / DropIcmpFlood,
    /// Packets that `icmp_flood` would have dropped in enforce mode.
    would_drop_icmp_flood / WouldDropIcmpFlood,
    /// Packets dropped for the reason `connection_limit`.
    drop_connection_limit / DropConnectionLimit,
    /// Packets that `connection_limit` would have dropped in enforce mode.
    would_drop_connection_limit / WouldDropConnectionLimit,
    /// Packets dropped for the reason `packet_limit`.
    drop_packet_limit / DropPacketLimit,
    /// Packets that `packet_limit` would have dropped in enforce mode.
    would_drop_packet_limit / WouldDropPacketLimit,
    /// Packets dropped for the reason `byte_limit`.
    drop_byte_limit / DropByteLimit,
    /// Packets that `byte_limit` would have dropped in enforce mode.
    would_drop_byte_limit / WouldDropByteLimit,
    /// Packets dropped for the reason `port_limit`.
    drop_port_limit / DropPortLimit,
    /// Packets that `port_limit` would have dropped in enforce mode.
    would_drop_port_limit / WouldDropPortLimit,
    /// Packets dropped for the reason `total_limit`.
    drop_total_limit / DropTotalLimit,
    /// Packets that `total_limit` would have dropped in enforce mode.
    would_drop_total_limit / WouldDropTotalLimit,
    /// Packets dropped for the reason `mesh_limit`.
    drop_mesh_limit / DropMeshLimit,
    /// Packets that `mesh_limit` would have dropped in enforce mode.
    would_drop_mesh_limit / WouldDropMeshLimit,
    /// Packets dropped for the reason `bad_cookie`.
    drop_bad_cookie / DropBadCookie,
    /// Packets that `bad_cookie` would have dropped in enforce mode.
    would_drop_bad_cookie / WouldDropBadCookie,
    /// Packets dropped for the reason `quarantine`.
    drop_quarantine / DropQuarantine,
    /// Packets that `quarantine` would have dropped in enforce mode.
    would_drop_quarantine / WouldDropQuarantine,
    /// Dropped or challenged packets that the allowlist let through, other than blocks.
    pass_allowlist_other / PassAllowlistOther,
    /// Connection attempts answered with a SYN cookie.
    cookie_sent / CookieSent,
    /// Acknowledgements that carried a good cookie: the source is verified from then on.
    cookie_verified / CookieVerified,
    /// Connection attempts that would have been answered with a cookie in enforce mode.
    would_cookie / WouldCookie,
    /// Connection attempts that a cookie could not be made for; passed to the kernel.
    cookie_failed / CookieFailed,
    /// Packets to a tripwire port.
    tripwire / Tripwire,
    /// Flows that began.
    flow_started / FlowStarted,
    /// Flow records sent to the controller.
    flow_exported / FlowExported,
    /// Flow records lost because the ring was full.
    flow_ring_full / FlowRingFull,
    /// Packets of flows that found no slot.
    flow_contended / FlowContended,
    /// Heads of dropped packets sent to a capture.
    captured / Captured,
    /// Heads of dropped packets not captured because the ring was full or the tick's budget used up.
    capture_lost / CaptureLost,
    /// Packets that leave and that are no flow's, because they cannot be read.
    flow_unreadable / FlowUnreadable,
    /// Beginnings and ends of processes sent to the controller.
    process_sent / ProcessSent,
    /// Beginnings and ends of processes not sent because the CPU's budget was used up.
    process_over_budget / ProcessOverBudget,
    /// Beginnings and ends of processes not sent because the ring was full.
    process_ring_full / ProcessRingFull,
    /// Searches of the lists that were made again because a replacement moved what they read.
    list_again / ListAgain,
    /// Of those, searches given up because that happened each time; the packet counts as not listed.
    list_unsettled / ListUnsettled,
}

/// A per-CPU budget for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EventBudget {
    /// When the current tick began, `CLOCK_MONOTONIC` ns (coarse).
    pub tick_start_ns: u64,
    /// Events sent in it.
    pub used: u64,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), only u64 fields, every bit pattern is valid.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EventBudget {}
}

impl From<crate::packet::Malformed> for Counter {
    #[inline(always)]
    fn from(reason: crate::packet::Malformed) -> Self {
        use crate::packet::Malformed as M;
        match reason {
            M::Ethernet => Self::MalformedEthernet,
            M::Vlan => Self::MalformedVlan,
            M::Ipv4Header => Self::MalformedIpv4Header,
            M::IpVersion => Self::MalformedIpVersion,
            M::IpLength => Self::MalformedIpLength,
            M::Ipv6Header => Self::MalformedIpv6Header,
            M::ExtensionHeaders => Self::MalformedExtensionHeaders,
            M::Tcp => Self::MalformedTcp,
            M::Udp => Self::MalformedUdp,
            M::Icmp => Self::MalformedIcmp,
        }
    }
}
