//! Filters of the clsact queueing discipline: how what leaves an interface is counted where the kernel has no TCX links
//! (before Linux 6.6).
//!
//! A filter is no link: nothing of it can be pinned, and nothing needs to be. It holds its program, and stays until
//! somebody takes it off or its interface goes, whether or not an agent runs. So that the next agent finds it, it is at
//! a place of ours on every interface, and that agent puts its program into the same filter in one step
//! (`cls_bpf_change` in `net/sched/cls_bpf.c` exchanges it under RCU). Only the filter is taken off in the end: the
//! queueing discipline, which may have been there before and passes packets on, stays.

use std::{io, mem::ManuallyDrop, os::fd::AsRawFd as _};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{MsgFlags, recv},
};

use super::{
    attach::chain,
    flows::EGRESS,
    netlink::{ANSWER, NLM_F_REQUEST, NLMSG_HEADER, asked, attributes, u16_at, u32_at},
};

// include/uapi/linux/{netlink,rtnetlink,pkt_cls,pkt_sched}.h
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
/// `struct tcmsg`.
const TCMSG: usize = 20;
/// `TC_H_CLSACT` with `TC_H_MIN_EGRESS`.
const EGRESS_PARENT: u32 = 0xffff_fff3;

/// More answers than any interface has filters.
const MOST_ANSWERS: usize = 64;

/// Where a filter is among those of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    priority: u16,
    handle: TcHandle,
}

/// Where ours is: not where the kernel puts a filter by itself (priorities from 49152 down, handles from 1 up).
const OURS: Place = Place {
    priority: 0x5ec0,
    handle: TcHandle::new(0x005e, 0xc3e5),
};

impl Place {
    /// What aya calls the filter there; dropping it takes the filter off.
    fn link(self, interface: &str) -> io::Result<SchedClassifierLink> {
        SchedClassifierLink::attached(
            interface,
            TcAttachType::Egress,
            self.priority,
            self.handle,
            None,
        )
    }
}

/// Puts the program on an interface, into the filter that an earlier agent left or into a new one. With `stays` it
/// outlives this process.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn put(
    program: &mut SchedClassifier,
    interface: &str,
    stays: bool,
) -> Result<(), String> {
    let there = found(interface).map_err(|e| format!("asking for its filters: {e}"))?;
    // It may be there already, so this matters only if the next call fails.
    let added = qdisc_add_clsact(interface);
    let attached = if there.contains(&OURS) {
        let link = OURS.link(interface).map_err(|e| e.to_string())?;
        program.attach_to_link(link)
    } else {
        let options = NlOptions {
            priority: OURS.priority,
            handle: OURS.handle,
            classid: None,
        };
        program.attach_with_options(
            interface,
            TcAttachType::Egress,
            TcAttachOptions::Netlink(options),
        )
    };
    let id = attached.map_err(|e| match &added {
        Ok(()) => chain(&e),
        Err(before) => format!("{} (adding the clsact qdisc: {})", chain(&e), chain(before)),
    })?;
    if stays {
        let link = program.take_link(id).map_err(|e| chain(&e))?;
        // Dropping it would take the filter off.
        let _stays = ManuallyDrop::new(link);
    }
    // An older version let the kernel choose; two would count everything twice.
    take_off(interface, there.into_iter().filter(|place| *place != OURS))
}

/// Puts the program into the filter that an earlier agent left, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn take_over(program: &mut SchedClassifier, interface: &str) -> Result<(), String> {
    match found(interface) {
        Ok(there) if there.is_empty() => Ok(()),
        Ok(_) => put(program, interface, true),
        Err(error) => Err(format!("asking for its filters: {error}")),
    }
}

/// Takes our filters off an interface; nothing if there are none.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn remove(interface: &str) -> Result<(), String> {
    let there = found(interface).map_err(|e| format!("asking for its filters: {e}"))?;
    take_off(interface, there.into_iter())
}

fn take_off(interface: &str, places: impl Iterator<Item = Place>) -> Result<(), String> {
    for place in places {
        let link = place.link(interface).map_err(|e| e.to_string())?;
        aya::programs::links::Link::detach(link).map_err(|e| chain(&e))?;
    }
    Ok(())
}

/// Our filters on what leaves an interface: those whose program has our name. None if there is no such interface.
fn found(interface: &str) -> io::Result<Vec<Place>> {
    let Ok(index) = if_nametoindex(interface) else {
        return Ok(Vec::new());
    };
    let socket = asked(&request(index))?;
    let mut all = Vec::new();
    for _ in 0..MOST_ANSWERS {
        let mut answer = vec![0; ANSWER];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(len);
        if !places(&answer, &mut all)? {
            return Ok(all);
        }
    }
    Err(io::Error::other("more answers than filters"))
}

/// Asks for all filters of an interface's outgoing packets.
fn request(index: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(NLMSG_HEADER + TCMSG);
    let len = u32::try_from(NLMSG_HEADER + TCMSG).unwrap_or(u32::MAX);
    message.extend(len.to_ne_bytes());
    message.extend(RTM_GETTFILTER.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and port; then family and padding.
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    // Handle.
    message.extend([0; 4]);
    message.extend(EGRESS_PARENT.to_ne_bytes());
    // Priority and protocol.
    message.extend([0; 4]);
    message
}

/// Adds the places of our filters in one answer; whether more answers come.
///
/// # Errors
/// What the kernel refused.
fn places(mut answer: &[u8], to: &mut Vec<Place>) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (u32_at(answer, 0), u16_at(answer, 4)) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(message) = answer.get(..len).filter(|m| m.len() >= NLMSG_HEADER) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let code = u32_at(message, NLMSG_HEADER).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            RTM_NEWTFILTER => to.extend(place(message)),
            _ => {}
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// Where a filter is, if it is one of ours.
fn place(message: &[u8]) -> Option<Place> {
    let handle = u32_at(message, NLMSG_HEADER + 8)?;
    let info = u32_at(message, NLMSG_HEADER + 16)?;
    let name = attributes(message.get(NLMSG_HEADER + TCMSG..)?)
        .filter(|(kind, _)| *kind == TCA_OPTIONS)
        .flat_map(|(_, nested)| attributes(nested))
        .find(|(kind, _)| *kind == TCA_BPF_NAME)
        .map(|(_, name)| name.strip_suffix(&[0]).unwrap_or(name))?;
    (handle != 0 && name == EGRESS.as_bytes()).then(|| Place {
        priority: u16::try_from(info >> 16).unwrap_or(0),
        handle: TcHandle::from(handle),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::attribute;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(NLMSG_HEADER + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(NLMSG_HEADER, 0);
        bytes.extend(body);
        bytes
    }

    fn filter(handle: u32, priority: u16, name: &str) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend(handle.to_ne_bytes());
        body.extend(EGRESS_PARENT.to_ne_bytes());
        body.extend((u32::from(priority) << 16 | 0x0300).to_ne_bytes());
        body.extend(attribute(1, b"bpf\0"));
        let name = [name.as_bytes(), &[0]].concat();
        body.extend(attribute(TCA_OPTIONS, &attribute(TCA_BPF_NAME, &name)));
        message(RTM_NEWTFILTER, &body)
    }

    #[test]
    fn filters_of_our_name_are_found_wherever_they_are_and_others_are_not() {
        let mut found = Vec::new();
        let answer = [
            // The chain itself, without a filter in it.
            filter(0, 49_152, EGRESS),
            filter(1, 49_152, EGRESS),
            filter(2, 49_152, "secmesh_egress2"),
            filter(u32::from(OURS.handle), OURS.priority, EGRESS),
        ]
        .concat();
        assert!(places(&answer, &mut found).unwrap(), "more may come");
        let older = Place {
            priority: 49_152,
            handle: TcHandle::new(0, 1),
        };
        assert_eq!(found, [older, OURS]);
        let done = message(NLMSG_DONE, &[0; 4]);
        assert!(!places(&done, &mut found).unwrap());
        let refused = message(NLMSG_ERROR, &(-19i32).to_ne_bytes());
        let error = places(&refused, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(19));
    }

    #[test]
    fn an_answer_cut_anywhere_ends_in_an_error_or_in_nothing() {
        let whole = filter(1, 1, EGRESS);
        for len in 0..whole.len() {
            let mut found = Vec::new();
            drop(places(&whole[..len], &mut found));
            assert_eq!(found, []);
        }
    }
}
