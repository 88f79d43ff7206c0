//! Interfaces come and go: what should be protected, what is, and what is waited for.

use std::collections::BTreeMap;

use tracing::{error, info, warn};

use super::{AgentError, core::Agent, protect};
use crate::{api::types::WaitingInterface, dataplane::DataplaneError, respond::Now};

/// How often the interfaces are looked at without a notice of the kernel, in case one was lost. A name costs
/// one system call.
const LOOK_NS: u64 = 1_000_000_000;
/// How soon after a look the next notice is followed; later ones wait for the tick. Who makes interfaces by
/// the hundred must not keep the loop busy.
const PAUSE_NS: u64 = 20_000_000;

/// What should be protected.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    wanted: Vec<String>,
    /// Those of them that are not protected, and why.
    waiting: BTreeMap<String, String>,
    looked_ns: u64,
    /// A notice came that was not yet followed.
    noticed: bool,
}

/// Why an interface is waited for.
const ABSENT: &str = "absent: there is no such interface";

impl Interfaces {
    pub(super) fn waiting(&self) -> Vec<WaitingInterface> {
        self.waiting
            .iter()
            .map(|(name, why)| WaitingInterface {
                name: name.clone(),
                why: why.clone(),
            })
            .collect()
    }
}

impl Agent {
    /// Attaches last: by now the maps say what the ledger says.
    pub(super) fn attach(&mut self) -> Result<(), AgentError> {
        let names = protect::interfaces(&self.options);
        if names.is_empty() {
            return Err(AgentError::NoInterface);
        }
        let listed = !self.options.interfaces.is_empty()
            || !self.options.config.dataplane.interfaces.is_empty();
        if listed {
            // Only a list that somebody wrote says what is not wanted; a default route comes and goes.
            for name in self.dataplane.take_off_all_but(&names)? {
                warn!(interface = %name, "no longer configured: the program was taken off it");
            }
        }
        self.interfaces.wanted.clone_from(&names);
        let mut failure = None;
        for name in &names {
            if let Err(error) = self.attach_one(name) {
                failure = Some(error);
            }
        }
        // Nothing is protected, and waiting will not help.
        match failure {
            Some(error) if self.dataplane.attached().is_empty() && !self.is_any_absent() => {
                Err(error.into())
            }
            _ => Ok(self.dataplane.finish_change()?),
        }
    }

    fn is_any_absent(&self) -> bool {
        self.interfaces.waiting.values().any(|why| why == ABSENT)
    }

    /// Attaches to one interface; if that does not work it is waited for.
    fn attach_one(&mut self, name: &str) -> Result<(), DataplaneError> {
        let policy = self.options.config.dataplane.attach;
        let (why, outcome) = match self.dataplane.attach(name, policy) {
            Ok(attached) => {
                info!(
                    interface = %attached.name, "XDP attached in {} mode{}", attached.attach_mode,
                    if attached.resumed { ", taking over the running link" } else { "" }
                );
                self.interfaces.waiting.remove(name);
                return Ok(());
            }
            Err(DataplaneError::NoInterface { .. }) => (ABSENT.to_owned(), Ok(())),
            Err(error) => (error.to_string(), Err(error)),
        };
        let known = self.interfaces.waiting.insert(name.to_owned(), why.clone());
        if known.as_ref() != Some(&why) {
            if outcome.is_ok() {
                warn!(
                    interface = name,
                    "not there; it is protected as soon as it comes"
                );
            } else {
                error!(interface = name, "not protected: {why}");
            }
        }
        outcome
    }

    /// The kernel says that some interface came, went or changed.
    pub(super) fn notice_interfaces(&mut self, now: Now) {
        self.interfaces.noticed = true;
        if now.mono_ns.saturating_sub(self.interfaces.looked_ns) >= PAUSE_NS {
            self.look_at_interfaces(now);
        }
    }

    /// Looks which interfaces came and went, if it is time to.
    pub(super) fn look_at_interfaces(&mut self, now: Now) {
        let age_ns = now.mono_ns.saturating_sub(self.interfaces.looked_ns);
        if !self.interfaces.noticed && age_ns < LOOK_NS {
            return;
        }
        self.interfaces.noticed = false;
        self.interfaces.looked_ns = now.mono_ns;
        let mut again = Vec::new();
        for attached in self.dataplane.attached().to_vec() {
            // Another index: it was deleted and made anew, or another one took its name.
            let index = nix::net::if_::if_nametoindex(attached.name.as_str()).ok();
            if index != Some(attached.index) {
                warn!(
                    interface = %attached.name, was = attached.index, is = ?index,
                    "the interface has gone"
                );
                if let Err(error) = self.dataplane.let_go(&attached.name) {
                    error!(interface = %attached.name, %error, "its link is still pinned");
                }
                again.push(attached.name);
            }
        }
        again.extend(
            self.interfaces
                .waiting
                .keys()
                .filter(|name| nix::net::if_::if_nametoindex(name.as_str()).is_ok())
                .cloned(),
        );
        for name in again {
            // What is in the way is in `status` and in the log.
            drop(self.attach_one(&name));
        }
    }
}
