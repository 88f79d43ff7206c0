//! `[flows]` and `[host]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{check::Checker, values};

/// `[flows]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowsConfig {
    /// Whether flows are recorded. Default: yes.
    pub enabled: bool,
    /// Flows that the kernel can follow at once, rounded up to a power of two, 328 bytes each: 1024 to
    /// 1048576. Default 32768.
    #[serde(deserialize_with = "values::count")]
    pub table_size: u32,
    /// A flow is over after this silence: 1 s to 5 min. Default 15 s.
    #[serde(with = "values::duration")]
    pub idle_timeout: Duration,
    /// A flow that lasts is recorded every so often: 5 s to 1 h. Default 60 s.
    #[serde(with = "values::duration")]
    pub active_timeout: Duration,
}

impl Default for FlowsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            table_size: 32_768,
            idle_timeout: Duration::from_secs(15),
            active_timeout: Duration::from_mins(1),
        }
    }
}

/// `[host]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Whether beginnings and ends of processes are recorded. Default: yes.
    pub processes: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { processes: true }
    }
}

impl FlowsConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        let seconds = Duration::from_secs;
        check.flag("enabled");
        check.count("table_size", self.table_size, 1024..=1_048_576);
        check.duration("idle_timeout", self.idle_timeout, seconds(1)..=seconds(300));
        check.duration(
            "active_timeout",
            self.active_timeout,
            seconds(5)..=seconds(3600),
        );
    }
}

impl HostConfig {
    #[expect(
        clippy::unused_self,
        reason = "like the other sections; what it checks follows from the names alone so far"
    )]
    pub(super) fn check(&self, check: &mut Checker) {
        check.flag("processes");
    }
}
