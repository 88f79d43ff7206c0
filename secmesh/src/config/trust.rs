//! `[trust]`

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{check::Checker, values};

/// `[trust]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Whether this node asks its peers test questions. Default: yes.
    pub questions: bool,
    /// How often it asks one peer one question: 1 s to 1 d. Default 1 h.
    #[serde(with = "values::duration")]
    pub question_interval: Duration,
}

impl Default for TrustConfig {
    fn default() -> Self {
        Self {
            questions: true,
            question_interval: Duration::from_hours(1),
        }
    }
}

impl TrustConfig {
    pub(super) fn check(&self, check: &mut Checker) {
        check.flag("questions");
        check.duration(
            "question_interval",
            self.question_interval,
            Duration::from_secs(1)..=Duration::from_hours(24),
        );
    }
}
