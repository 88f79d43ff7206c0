//! Per-CPU packet counters by reason. They are the truth; events are samples.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident / $variant:ident,)+) => {
        /// One CPU's counters; `bpftool map dump` prints the field names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[repr(C)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
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
