//! Why a packet is dropped: one number for the counters, the captures, the configuration and the books.

use crate::counters::Counter;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $dropped:ident, $would:ident;)+) => {
        /// Why a packet is dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that configuration, metrics and `secmesh capture --reason` use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The reason with this number.
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// What counts the packets dropped for it.
            #[inline(always)]
            pub const fn dropped(self) -> Counter {
                match self {
                    $(Self::$variant => Counter::$dropped,)+
                }
            }

            /// What counts the packets that would have been dropped for it in enforce mode.
            #[inline(always)]
            pub const fn would_drop(self) -> Counter {
                match self {
                    $(Self::$variant => Counter::$would,)+
                }
            }
        }
    };
}

reasons! {
    /// A decision on the source address itself.
    Exact = 0, "exact", DropExact, WouldDropExact;
    /// A decision on a prefix around the source.
    Prefix = 1, "prefix", DropPrefix, WouldDropPrefix;
    /// An imported list names the source or a prefix around it.
    List = 2, "list", DropList, WouldDropList;
    /// The packet cannot be parsed.
    Malformed = 3, "malformed", DropMalformed, WouldDropMalformed;
    /// Source and destination are the same (LAND), or the source is loopback, multicast or broadcast.
    Land = 4, "land", DropLand, WouldDropLand;
    /// TCP flags that no conversation contains: none at all, Xmas, SYN with FIN or RST.
    TcpFlags = 5, "tcp_flags", DropTcpFlags, WouldDropTcpFlags;
    /// A first fragment too small for its transport header, or a later one that overlaps it (RFC 3128).
    TinyFragment = 6, "tiny_fragment", DropTinyFragment, WouldDropTinyFragment;
    /// More fragments than the limit.
    FragmentFlood = 7, "fragment_flood", DropFragmentFlood, WouldDropFragmentFlood;
    /// An ICMP echo to a broadcast or multicast address, or a reply that came of one (smurf).
    Smurf = 8, "smurf", DropSmurf, WouldDropSmurf;
    /// A UDP answer of an amplifying service that nothing here asked for.
    Amplification = 9, "amplification", DropAmplification, WouldDropAmplification;
    /// An acknowledgement that belongs to no connection, in a flood of them.
    AckFlood = 10, "ack_flood", DropAckFlood, WouldDropAckFlood;
    /// A reset that belongs to no connection, in a flood of them.
    RstFlood = 11, "rst_flood", DropRstFlood, WouldDropRstFlood;
    /// A FIN that belongs to no connection, in a flood of them.
    FinFlood = 12, "fin_flood", DropFinFlood, WouldDropFinFlood;
    /// A SYN-ACK that answers nothing (reflection), in a flood of them.
    SynAckFlood = 13, "syn_ack_flood", DropSynAckFlood, WouldDropSynAckFlood;
    /// More connection attempts than the source's limit.
    SynFlood = 14, "syn_flood", DropSynFlood, WouldDropSynFlood;
    /// More UDP datagrams than the source's limit.
    UdpFlood = 15, "udp_flood", DropUdpFlood, WouldDropUdpFlood;
    /// More ICMP messages than the source's limit.
    IcmpFlood = 16, "icmp_flood", DropIcmpFlood, WouldDropIcmpFlood;
    /// More new connections than the source's limit.
    ConnectionLimit = 17, "connection_limit", DropConnectionLimit, WouldDropConnectionLimit;
    /// More packets than the source's limit.
    PacketLimit = 18, "packet_limit", DropPacketLimit, WouldDropPacketLimit;
    /// More bytes than the source's limit.
    ByteLimit = 19, "byte_limit", DropByteLimit, WouldDropByteLimit;
    /// More than the destination port's limit.
    PortLimit = 20, "port_limit", DropPortLimit, WouldDropPortLimit;
    /// More than the host's limit.
    TotalLimit = 21, "total_limit", DropTotalLimit, WouldDropTotalLimit;
    /// More new connections to the mesh port than one source may make.
    MeshLimit = 22, "mesh_limit", DropMeshLimit, WouldDropMeshLimit;
    /// To a flooded listener: an acknowledgement that carries no cookie of ours, or a fragmented attempt, which
    /// could not carry one.
    BadCookie = 23, "bad_cookie", DropBadCookie, WouldDropBadCookie;
    /// The source is the address of a node that the mesh has cut off.
    Quarantine = 24, "quarantine", DropQuarantine, WouldDropQuarantine;
}

impl Reason {
    /// The reason's bit in masks such as [`crate::config::Config::checks`].
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << (self as u8)
    }

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.name() == name)
    }
}
