//! Monitor or enforce, and enforcing on trial: back to monitor unless somebody confirms in time.
//!
//! The kernel holds the deadline (`enforce_until_ns`) and goes back by itself, so neither a dead agent nor an
//! operator who has locked himself out needs to do anything. The file in the state directory is there for
//! when the pinned maps are gone: after a reboot in the middle of a trial, the configuration's `enforce` does
//! not win over a confirmation that never came.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::{
    core::Agent,
    requests::{Answer, done},
};
use crate::{
    addr::Prefix,
    api::types::PendingConfirm,
    config::Mode,
    ledger::Record,
    respond::{Allowlist, Blocks},
    sense::netinfo::{self, AllowReason, LiveSystem},
};

/// File of a trial in the state directory.
const TRIAL_FILE: &str = "mode-trial.json";
/// Its format.
const TRIAL_FORMAT: u32 = 1;
/// Longest time to confirm, seconds: beyond that it is no trial but a forgotten setting.
const MAX_CONFIRM_S: u64 = 3600;

/// A trial, as it is kept over a reboot.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    /// When it ends, unix µs; for people who read the file.
    ends_unix_us: u64,
}

/// What a start finds of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// None, or one that was decided: at most a file is left over.
    Settled,
    /// It goes on.
    Running,
    /// Its time is over and nobody has confirmed.
    Overdue,
}

/// `until_ns`: the kernel's deadline; `kept`: the kernel's state is the one from before, not a fresh one;
/// `file`: a trial is on the disk.
fn found(until_ns: Option<u64>, now_ns: u64, kept: bool, file: bool) -> Found {
    match until_ns {
        Some(until) if now_ns < until => Found::Running,
        Some(_) => Found::Overdue,
        // The kernel forgot the trial with everything else (a reboot, `secmesh detach`).
        None if file && !kept => Found::Overdue,
        None => Found::Settled,
    }
}

/// Why enforcing would cut off one of `peers`: it is in a block, and the allowlist does not save it.
fn cut_off(peers: &[IpAddr], blocks: &Blocks, allowlist: &Allowlist) -> Option<(IpAddr, Prefix)> {
    peers.iter().find_map(|peer| {
        let prefix = blocks.covering(*peer)?;
        allowlist
            .protects(&Prefix::host(*peer))
            .is_none()
            .then_some((*peer, prefix))
    })
}

impl Agent {
    /// Takes a trial over from an earlier agent, or ends it. Call it before anything is attached.
    pub(super) fn resume_trial(&mut self) {
        let kept = self.dataplane.resumed;
        let file = self.state.has(TRIAL_FILE);
        let until = self.dataplane.enforce_until_ns();
        match found(until, self.clock.mono_ns(), kept, file) {
            Found::Settled => self.forget_trial(),
            Found::Running => {
                warn!(
                    seconds_left = self.pending_confirm().map_or(0, |p| p.seconds_left),
                    "enforcing on trial since before the start; `secmesh mode confirm` keeps it"
                );
            }
            // A mode on the command line is newer than the trial.
            Found::Overdue if self.options.mode.is_some() => self.forget_trial(),
            Found::Overdue => self.end_trial("the time ended while no agent ran"),
        }
    }

    /// Ends a trial whose time is over.
    pub(super) fn check_trial(&mut self) {
        if self
            .dataplane
            .enforce_until_ns()
            .is_some_and(|until| until <= self.clock.mono_ns())
        {
            self.end_trial("nobody confirmed in time");
        }
    }

    fn end_trial(&mut self, why: &str) {
        // The kernel counts only from its deadline on; this makes the same of what is shown and kept.
        if let Err(error) = self.dataplane.set_mode(Mode::Monitor) {
            error!(%error, "the mode is still shown as enforce; the kernel counts only");
            return;
        }
        self.forget_trial();
        self.refresh_cookies(true);
        warn!(why, "back to monitor mode: nothing is dropped any more");
        self.record(&Record::Mode {
            mode: Mode::Monitor.to_string(),
            by: format!("secmesh: {why}"),
        });
    }

    fn forget_trial(&self) {
        if let Err(error) = self.state.remove(TRIAL_FILE) {
            warn!(%error, "a trial that is over is still on the disk");
        }
    }

    /// The trial that waits for a confirmation.
    pub(super) fn pending_confirm(&self) -> Option<PendingConfirm> {
        let until = self.dataplane.enforce_until_ns()?;
        Some(PendingConfirm {
            seconds_left: until
                .saturating_sub(self.clock.mono_ns())
                .div_ceil(1_000_000_000),
        })
    }

    /// Switches the mode, for good or on trial.
    pub(super) fn set_mode(
        &mut self,
        mode: Mode,
        confirm_s: Option<u64>,
        ssh_peer: Option<IpAddr>,
    ) -> Answer {
        let before = self.dataplane.mode();
        if mode == Mode::Enforce {
            self.refuse_to_cut_off(ssh_peer)?;
        }
        match confirm_s {
            Some(_) if mode != Mode::Enforce => {
                return Err("only a switch to enforce is confirmed: monitor drops nothing".into());
            }
            Some(s) if s == 0 || s > MAX_CONFIRM_S => {
                return Err(format!(
                    "the time to confirm is from 1 second to {MAX_CONFIRM_S} seconds"
                ));
            }
            Some(_) if before == Mode::Enforce && self.pending_confirm().is_none() => {
                return Err(
                    "enforce mode is in force already, for good, so there is nothing to try; \
                     `secmesh mode monitor` first, if you mean to"
                        .to_owned(),
                );
            }
            Some(s) => {
                // The disk first: a trial that a reboot cuts off must be known.
                self.state
                    .write_json(
                        TRIAL_FILE,
                        TRIAL_FORMAT,
                        &Trial {
                            ends_unix_us: self.clock.unix_us().saturating_add(s * 1_000_000),
                        },
                    )
                    .map_err(|e| format!("not switched: the deadline is not on the disk: {e}"))?;
                let until = self.clock.mono_ns().saturating_add(s * 1_000_000_000);
                self.dataplane
                    .set_mode_until(mode, until)
                    .map_err(|e| e.to_string())?;
            }
            None => {
                self.dataplane.set_mode(mode).map_err(|e| e.to_string())?;
                self.forget_trial();
            }
        }
        self.refresh_cookies(true);
        self.record(&Record::Mode {
            mode: mode.to_string(),
            by: match confirm_s {
                Some(s) => format!("operator, on trial for {s} s"),
                None => "operator".to_owned(),
            },
        });
        let what = match confirm_s {
            Some(s) => format!(
                "{mode} mode for {s} s, then back to monitor unless `secmesh mode confirm` comes before"
            ),
            None if before == mode => format!("{mode} mode, as before"),
            None => format!("{mode} mode, was {before}"),
        };
        done(what, None)
    }

    /// Makes a trial permanent.
    pub(super) fn confirm_mode(&mut self) -> Answer {
        self.check_trial();
        if self.pending_confirm().is_none() {
            return Err(format!(
                "there is nothing to confirm: {} mode{}",
                self.dataplane.mode(),
                match self.dataplane.mode() {
                    Mode::Enforce => ", for good",
                    Mode::Monitor =>
                        "; if a trial ran, its time is over (`secmesh mode enforce --confirm 60s` begins one)",
                }
            ));
        }
        // The kernel first: a crash in between leaves a file that the next start sees is settled.
        self.dataplane
            .set_mode(Mode::Enforce)
            .map_err(|e| e.to_string())?;
        self.forget_trial();
        self.record(&Record::Mode {
            mode: Mode::Enforce.to_string(),
            by: "operator, confirmed".to_owned(),
        });
        done("enforce mode, confirmed: for good".to_owned(), None)
    }

    /// Refuses if a current block would drop the session that asks, or one that is logged in over SSH.
    ///
    /// Connections to sshd without a session do not count: anybody can open one, and would keep this host
    /// from ever enforcing.
    fn refuse_to_cut_off(&self, ssh_peer: Option<IpAddr>) -> Result<(), String> {
        let mut peers: Vec<IpAddr> = ssh_peer.into_iter().collect();
        peers.extend(
            netinfo::discover(&LiveSystem)
                .allow
                .iter()
                .filter(|a| a.reason == AllowReason::SshPeer)
                .map(|a| a.prefix.addr()),
        );
        match cut_off(&peers, &self.blocks, &self.allowlist) {
            None => Ok(()),
            Some((peer, prefix)) => Err(format!(
                "not switched: the SSH session from {peer} would be cut off, because {prefix} is blocked\n  \
                 remedy: `secmesh allow add {peer}`, or `secmesh unblock {prefix}`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::types::Origin,
        dataplane::TableError,
        respond::{Claim, Kernel, Now, Source},
    };

    #[test]
    fn a_start_ends_what_is_overdue_and_takes_over_what_is_not() {
        assert_eq!(found(Some(10), 9, true, true), Found::Running);
        assert_eq!(found(Some(10), 10, true, true), Found::Overdue);
        // Confirmed, and killed before the file went.
        assert_eq!(found(None, 10, true, true), Found::Settled);
        // Rebooted in the middle: the kernel has forgotten, the disk has not.
        assert_eq!(found(None, 10, false, true), Found::Overdue);
        assert_eq!(found(None, 10, false, false), Found::Settled);
    }

    struct Sink;

    impl Kernel for Sink {
        fn put(&mut self, _: &Prefix, _: u64, _: u32, _: u32) -> Result<(), TableError> {
            Ok(())
        }
        fn remove(&mut self, _: &Prefix) -> Result<(), TableError> {
            Ok(())
        }
        fn get(&self, _: &Prefix) -> Option<secmesh_common::block::BlockEntry> {
            None
        }
    }

    #[test]
    fn a_session_in_a_blocked_network_is_found_unless_it_is_allowlisted() {
        let mut blocks = Blocks::default();
        let now = Now {
            unix_us: 1,
            mono_ns: 1,
        };
        let claim = Claim {
            origin: Origin::Operator,
            expires_unix_us: 100,
            rule: 1,
        };
        let net: Prefix = "198.51.100.0/24".parse().unwrap();
        blocks
            .claim(&mut Sink, now, net, "a".to_owned(), claim)
            .unwrap();
        let peers: Vec<IpAddr> = ["192.0.2.1", "198.51.100.7"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        let mut allowlist = Allowlist::default();
        assert_eq!(cut_off(&peers, &blocks, &allowlist), Some((peers[1], net)));
        assert_eq!(cut_off(&peers[..1], &blocks, &allowlist), None);
        allowlist
            .add(peers[1].into(), Source::Operator, String::new())
            .unwrap();
        assert_eq!(cut_off(&peers, &blocks, &allowlist), None);
    }
}
