//! Asking the kernel which XDP program runs on an interface (one `RTM_GETLINK`, one answer), and being told
//! when interfaces come and go (`RTMGRP_LINK`).
//!
//! The message is 32 bytes and of the answer only `IFLA_XDP` is read, so a netlink library would be more to
//! trust than to gain. Layouts: `include/uapi/linux/{netlink,rtnetlink,if_link}.h`; all in host byte order.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            sendto, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// Multicast group: interfaces (`RTMGRP_LINK`).
const GROUP_LINK: u32 = 1;
/// Notices taken at a time; what else is there wakes the next call.
const NOTICES: usize = 1024;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLMSG_HEADER: usize = 16;
const IFINFO: usize = 16;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// Flags in an attribute's type (nested, byte order).
const NLA_TYPE_MASK: u16 = 0x3fff;
/// More than any link's description takes.
pub(super) const ANSWER: usize = 64 << 10;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn request(index: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(NLMSG_HEADER + IFINFO);
    let len = u32::try_from(NLMSG_HEADER + IFINFO).unwrap_or(u32::MAX);
    message.extend(len.to_ne_bytes());
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port.
    message.extend([0; 8]);
    // Family, padding and device type.
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    // Flags and change mask.
    message.extend([0; 8]);
    message
}

/// The attributes in `bytes`, up to the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        // Aligned to four; the last may end without its padding.
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The ids of the XDP programs in an answer to [`request`]; `None` if it is none.
fn programs(answer: &[u8]) -> Option<Vec<u32>> {
    if u16_at(answer, 4)? != RTM_NEWLINK {
        return None;
    }
    let len = usize::try_from(u32_at(answer, 0)?).ok()?;
    let body = answer.get(NLMSG_HEADER + IFINFO..len)?;
    let mut ids: Vec<u32> = attributes(body)
        .filter(|(kind, _)| *kind == IFLA_XDP)
        .flat_map(|(_, nested)| attributes(nested))
        .filter(|(kind, _)| {
            matches!(
                *kind,
                IFLA_XDP_PROG_ID
                    | IFLA_XDP_DRV_PROG_ID
                    | IFLA_XDP_SKB_PROG_ID
                    | IFLA_XDP_HW_PROG_ID
            )
        })
        .filter_map(|(_, value)| u32_at(value, 0))
        .filter(|id| *id != 0)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// A socket on which the kernel answers `message`.
pub(super) fn asked(message: &[u8]) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // The kernel answers at once; this is for the day on which it does not.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
    Ok(socket)
}

/// The ids of the XDP programs that run on the interface with this index, in whatever mode.
///
/// # Errors
///
/// The system's refusal; [`io::ErrorKind::NotFound`] if there is no such interface.
pub(super) fn xdp_programs(index: u32) -> io::Result<Vec<u32>> {
    let socket = asked(&request(index))?;
    let mut answer = vec![0; ANSWER];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(len);
    programs(&answer).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Tells when an interface of this network namespace came, went or changed. What it was the reader looks up
/// itself, so a notice that is lost is no harm as long as one comes.
pub struct LinkWatch(AsyncFd<OwnedFd>);

impl LinkWatch {
    /// Begins to listen; needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's refusal.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_LINK))?;
        // SAFETY: the socket is owned by its new owner, which closes it only after it has deregistered it.
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Waits for a notice and takes the others that are there with it. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the socket can no longer be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            let mut told = false;
            // A notice that does not fit is cut, and the rest of it dropped: nothing of it is read.
            let mut byte = [0];
            for _ in 0..NOTICES {
                match recv(
                    guard.get_inner().as_raw_fd(),
                    &mut byte,
                    MsgFlags::MSG_TRUNC,
                ) {
                    Ok(_) | Err(Errno::ENOBUFS) => told = true,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if told {
                return Ok(());
            }
        }
    }
}

/// An attribute as the kernel writes one.
#[cfg(test)]
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(NLMSG_HEADER + IFINFO + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(NLMSG_HEADER + IFINFO, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn programs_of_every_mode_are_found_once() {
        let nested = [
            attribute(2, &[2]),
            attribute(IFLA_XDP_PROG_ID, &7u32.to_ne_bytes()),
            attribute(IFLA_XDP_DRV_PROG_ID, &7u32.to_ne_bytes()),
            attribute(IFLA_XDP_SKB_PROG_ID, &9u32.to_ne_bytes()),
        ]
        .concat();
        let body = [
            attribute(3, b"eth0\0"),
            attribute(IFLA_XDP | 0x8000, &nested),
        ]
        .concat();
        assert_eq!(programs(&answer(RTM_NEWLINK, &body)), Some(vec![7, 9]));
        let none = attribute(IFLA_XDP, &attribute(2, &[0]));
        assert_eq!(programs(&answer(RTM_NEWLINK, &none)), Some(vec![]));
        assert_eq!(programs(&answer(2, &body)), None, "an error message");
    }

    #[test]
    fn an_answer_cut_anywhere_does_no_harm() {
        let body = attribute(IFLA_XDP, &attribute(IFLA_XDP_PROG_ID, &7u32.to_ne_bytes()));
        let whole = answer(RTM_NEWLINK, &body);
        for len in 0..whole.len() {
            assert_eq!(programs(&whole[..len]), None);
        }
        // An attribute that claims no length ends the list and not the program.
        assert_eq!(programs(&answer(RTM_NEWLINK, &[0; 8])), Some(vec![]));
    }

    #[test]
    fn the_loopback_interface_is_there_and_an_index_beyond_all_is_not() {
        assert!(xdp_programs(1).is_ok());
        assert_eq!(
            xdp_programs(0x7fff_fff0).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
