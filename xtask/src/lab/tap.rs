//! Counting packets on a wire, independently of what the agents say.

use std::io::IoSliceMut;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeSpec;

use super::ns;

const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
/// How much of a packet is kept: none of it is looked at.
const SNAP: u32 = 64;

/// A packet socket whose kernel filter lets through only IP packets from one address.
///
/// Address resolution (ARP, neighbour discovery) is not counted.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    counted: AtomicU64,
}

impl Tap {
    /// Listens on `interface` in `namespace` for packets from `source`, and to `destination` if given.
    ///
    /// # Errors
    /// When the namespace or the interface is not there, or we are not root.
    pub fn open(
        namespace: &str,
        interface: &'static str,
        source: IpAddr,
        destination: Option<IpAddr>,
    ) -> anyhow::Result<Self> {
        Self::with(namespace, interface, filter(source, destination)?)
    }

    /// Listens for TCP segments from `source` to `port` alone, whoever they are for.
    ///
    /// # Errors
    /// As [`Self::open`], and when the source is no IPv4 address.
    pub fn open_tcp(
        namespace: &str,
        interface: &'static str,
        source: IpAddr,
        port: u16,
    ) -> anyhow::Result<Self> {
        if source.is_ipv6() {
            bail!("segments of IPv6 are not told apart by port here");
        }
        let mut program = matching(source, None)?;
        // Behind an IPv4 header without options.
        program.require(23, libc::BPF_B, u32::try_from(libc::IPPROTO_TCP)?);
        program.require(36, libc::BPF_H, port.into());
        Self::with(namespace, interface, program.assemble()?)
    }

    fn with(
        namespace: &str,
        interface: &'static str,
        program: Vec<libc::sock_filter>,
    ) -> anyhow::Result<Self> {
        let socket = ns::within(namespace, move || listen(interface, &program))?;
        Ok(Self {
            socket,
            counted: AtomicU64::new(0),
        })
    }

    /// When the first packet came, unix microseconds by the kernel's clock; none if none came yet.
    ///
    /// Asking again after an answer gives the time of a later packet: keep the first answer.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn first_unix_us(&self) -> anyhow::Result<Option<u64>> {
        let mut bytes = [0_u8; 64];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!(TimeSpec);
        let message = match recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(message) => message,
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("cannot read from the packet socket"),
        };
        for part in message.cmsgs().context("cannot read a packet's time")? {
            if let ControlMessageOwned::ScmTimestampns(time) = part {
                let micros =
                    i128::from(time.tv_sec()) * 1_000_000 + i128::from(time.tv_nsec()) / 1_000;
                return Ok(Some(
                    u64::try_from(micros).context("a packet from before 1970")?,
                ));
            }
        }
        bail!("the kernel gave a packet without its time")
    }

    /// Packets so far. Counted by the kernel, also those that nobody read.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn packets(&self) -> anyhow::Result<u64> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())
            .context("size of the statistics")?;
        // SAFETY: the pointers are to live, writable values, and the length is that of the first.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        nix::errno::Errno::result(result).context("cannot read a packet socket's statistics")?;
        // Reading sets the kernel's count back to zero.
        let new = u64::from(statistics.tp_packets);
        Ok(self.counted.fetch_add(new, Ordering::Relaxed) + new)
    }
}

fn listen(interface: &str, program: &[libc::sock_filter]) -> anyhow::Result<OwnedFd> {
    // Without a protocol it hears nothing until it is bound, so nothing comes in ahead of the filter.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("cannot open a packet socket; this needs root")?;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).context("the filter is too long")?,
        filter: program.as_ptr().cast_mut(),
    };
    let length =
        libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).context("size of a filter")?;
    // SAFETY: the pointer is to a live filter program, which the kernel copies and does not write.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    nix::errno::Errno::result(result).context("the kernel refuses the packet filter")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
        .context("the kernel gives no packet times")?;

    let index = nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("no interface {interface} here"))?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).context("address family")?;
    // Every protocol: packets on their way out are shown to such sockets only.
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).context("protocol")?.to_be();
    address.sll_ifindex = i32::try_from(index).context("interface index")?;
    let length =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).context("size of an address")?;
    // SAFETY: the pointer is to a live sockaddr_ll of that length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    nix::errno::Errno::result(result).with_context(|| format!("cannot listen on {interface}"))?;
    Ok(socket)
}

/// A classic BPF program, written with jumps to "next" and "reject" only.
struct Program {
    steps: Vec<Step>,
}

enum Step {
    /// Load `width` (`BPF_W`, `BPF_H`, `BPF_B`) bytes at the offset; go on if they are the value, else reject.
    Require(u32, u32, u32),
    /// Reject `ICMPv6` types 133 to 137.
    RejectNeighbourDiscovery,
}

fn filter(source: IpAddr, destination: Option<IpAddr>) -> anyhow::Result<Vec<libc::sock_filter>> {
    matching(source, destination)?.assemble()
}

fn matching(source: IpAddr, destination: Option<IpAddr>) -> anyhow::Result<Program> {
    let mut program = Program { steps: Vec::new() };
    match source {
        IpAddr::V4(source) => {
            program.require(12, libc::BPF_H, ETHERTYPE_IPV4);
            program.require_bytes(26, &source.octets());
        }
        IpAddr::V6(source) => {
            program.require(12, libc::BPF_H, ETHERTYPE_IPV6);
            program.require_bytes(22, &source.octets());
            program.steps.push(Step::RejectNeighbourDiscovery);
        }
    }
    match (source, destination) {
        (_, None) => {}
        (IpAddr::V4(_), Some(IpAddr::V4(to))) => program.require_bytes(30, &to.octets()),
        (IpAddr::V6(_), Some(IpAddr::V6(to))) => program.require_bytes(38, &to.octets()),
        _ => bail!("source and destination are of different families"),
    }
    Ok(program)
}

impl Program {
    fn require(&mut self, offset: u32, width: u32, value: u32) {
        self.steps.push(Step::Require(offset, width, value));
    }

    fn require_bytes(&mut self, offset: u32, bytes: &[u8]) {
        for (at, word) in (offset..).step_by(4).zip(bytes.chunks_exact(4)) {
            let value = word
                .iter()
                .fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
            self.require(at, libc::BPF_W, value);
        }
    }

    fn assemble(&self) -> anyhow::Result<Vec<libc::sock_filter>> {
        let total: usize = self.steps.iter().map(Step::length).sum();
        let mut code = Vec::with_capacity(total + 2);
        for step in &self.steps {
            let left = total - code.len() - step.length();
            // Behind all steps: accept, then reject.
            let reject = u8::try_from(left + 1).context("the filter is too long")?;
            match *step {
                Step::Require(offset, width, value) => {
                    code.push(instruction(
                        libc::BPF_LD | width | libc::BPF_ABS,
                        0,
                        0,
                        offset,
                    )?);
                    code.push(instruction(
                        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                        0,
                        reject,
                        value,
                    )?);
                }
                Step::RejectNeighbourDiscovery => {
                    // The next header's number, then the ICMPv6 type.
                    code.push(instruction(
                        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
                        0,
                        0,
                        20,
                    )?);
                    code.push(instruction(
                        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                        0,
                        3,
                        58,
                    )?);
                    code.push(instruction(
                        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
                        0,
                        0,
                        54,
                    )?);
                    code.push(instruction(
                        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
                        0,
                        1,
                        133,
                    )?);
                    code.push(instruction(
                        libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
                        0,
                        reject,
                        137,
                    )?);
                }
            }
        }
        code.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, SNAP)?);
        code.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0)?);
        Ok(code)
    }
}

impl Step {
    fn length(&self) -> usize {
        match self {
            Self::Require(..) => 2,
            Self::RejectNeighbourDiscovery => 5,
        }
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> anyhow::Result<libc::sock_filter> {
    Ok(libc::sock_filter {
        code: u16::try_from(code).context("no such instruction")?,
        jt,
        jf,
        k,
    })
}
