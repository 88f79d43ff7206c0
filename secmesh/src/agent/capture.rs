//! `secmesh capture`, the agent's side: one at a time, and it ends by itself.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use secmesh_common::{capture::MAX_SNAP, reason::Reason};
use tracing::warn;

use super::core::Agent;
use crate::{
    api::types::{CaptureBatch, CaptureStarted, CapturedPacket},
    dataplane::CaptureReader,
};

/// Longest capture, seconds.
const MAX_SECONDS: u64 = 3600;
/// Heads in one answer.
const BATCH: usize = 512;
/// A capture that nobody asks about for this long is over, ns.
const FORGOTTEN_NS: u64 = 5_000_000_000;

/// A capture that is under way.
#[derive(Debug, Clone, Copy)]
struct Session {
    id: u64,
    ends_ns: u64,
    asked_ns: u64,
    lost_before: u64,
}

/// The ring of captured heads and who reads it.
pub(super) struct Captures {
    reader: CaptureReader,
    session: Option<Session>,
    last_id: u64,
}

impl Captures {
    /// Nobody reads it yet.
    pub(super) const fn new(reader: CaptureReader) -> Self {
        Self {
            reader,
            session: None,
            last_id: 0,
        }
    }

    /// Ends a capture whose time is over or whose reader has gone.
    pub(super) fn tick(&mut self, now_ns: u64) {
        let over = self
            .session
            .is_some_and(|s| now_ns.saturating_sub(s.asked_ns) > FORGOTTEN_NS);
        if over {
            self.session = None;
        }
        if (over || self.session.is_some_and(|s| now_ns >= s.ends_ns))
            && let Err(error) = self.reader.stop()
        {
            warn!(%error, "the kernel goes on capturing; it is asked again");
        }
    }
}

impl Agent {
    fn capture_lost(&self) -> u64 {
        self.counters.read().map_or(0, |c| c.capture_lost)
    }

    /// Starts a capture.
    pub(super) fn capture_start(
        &mut self,
        reasons: &[String],
        snap: usize,
        seconds: u64,
    ) -> Result<CaptureStarted, String> {
        let mut bits = 0;
        for name in reasons {
            let reason = Reason::from_name(name).ok_or_else(|| {
                let names: Vec<&str> = Reason::ALL.iter().map(|r| r.name()).collect();
                format!(
                    "there is no reason `{name}`\n  remedy: use one of {}",
                    names.join(", ")
                )
            })?;
            bits |= reason.bit();
        }
        if reasons.is_empty() {
            bits = u64::MAX;
        }
        if !(1..=MAX_SNAP).contains(&snap) || !(1..=MAX_SECONDS).contains(&seconds) {
            return Err(format!(
                "a capture takes 1 to {MAX_SNAP} bytes of each packet for 1 to {MAX_SECONDS} seconds"
            ));
        }
        let now_ns = self.clock.mono_ns();
        self.captures.tick(now_ns);
        if self.captures.session.is_some() {
            return Err(
                "another capture is under way\n  remedy: wait for its end, or stop it".to_owned(),
            );
        }
        let lost_before = self.capture_lost();
        self.captures
            .reader
            .start(bits, snap)
            .map_err(|e| e.to_string())?;
        self.captures.last_id += 1;
        let id = self.captures.last_id;
        self.captures.session = Some(Session {
            id,
            ends_ns: now_ns.saturating_add(seconds.saturating_mul(1_000_000_000)),
            asked_ns: now_ns,
            lost_before,
        });
        Ok(CaptureStarted { id })
    }

    /// Hands over what was captured since the last time.
    pub(super) fn capture_next(&mut self, id: u64) -> Result<CaptureBatch, String> {
        let now_ns = self.clock.mono_ns();
        let Some(session) = self.captures.session.as_mut().filter(|s| s.id == id) else {
            return Err("that capture is over".to_owned());
        };
        session.asked_ns = now_ns;
        let Session {
            ends_ns,
            lost_before,
            ..
        } = *session;
        let base = self.time_base();
        let packets: Vec<CapturedPacket> = self
            .captures
            .reader
            .take(BATCH)
            .into_iter()
            .filter_map(|head| {
                let length = usize::try_from(head.head_len).ok()?;
                Some(CapturedPacket {
                    unix_us: base.unix_us(head.ts_ns),
                    interface: interface_name(head.ifindex),
                    wire_len: head.wire_len,
                    reason: Reason::from_u8(head.reason)?.name().to_owned(),
                    dropped: head.dropped != 0,
                    data: BASE64_STANDARD.encode(head.head.get(..length)?),
                })
            })
            .collect();
        let over = now_ns >= ends_ns && packets.len() < BATCH;
        if over {
            self.capture_stop(id)?;
        }
        Ok(CaptureBatch {
            packets,
            lost: self.capture_lost().saturating_sub(lost_before),
            over,
        })
    }

    /// Ends a capture before its time.
    pub(super) fn capture_stop(&mut self, id: u64) -> Result<(), String> {
        if self.captures.session.is_some_and(|s| s.id == id) {
            self.captures.session = None;
            self.captures.reader.stop().map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index).map_or_else(
        |_gone| format!("interface {index}"),
        |name| name.to_string_lossy().into_owned(),
    )
}
