//! What `cargo xtask bench SUITE --json` prints.

use serde::Serialize;

/// The result of one benchmark suite: one JSON object.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which suite was run, such as `dataplane`.
    pub suite: String,
    /// Where it was run.
    pub machine: Machine,
    /// What was measured.
    pub rows: Vec<Row>,
}

/// The machine a benchmark ran on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Processor model, empty where the kernel does not name one.
    pub cpu: String,
    /// Processors that the system has online.
    pub cpus: usize,
}

/// One measured value beside a peer's, both from the same run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Our value.
    pub value: f64,
    /// The unit of both values, such as `ns/packet`.
    pub unit: String,
    /// Whom we compare with; none where no peer does this.
    pub peer: Option<String>,
    /// The peer's value.
    pub peer_value: Option<f64>,
    /// `value / peer_value`.
    pub ratio: Option<f64>,
}

impl Row {
    /// A row with the ratio worked out; there is none where the peer's value is zero.
    pub fn new(name: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            peer: peer.map(|(name, _)| name.to_owned()),
            peer_value: peer.map(|(_, value)| value),
            ratio: peer.and_then(|(_, theirs)| (theirs != 0.0).then(|| value / theirs)),
        }
    }
}

impl Machine {
    /// Describes the machine this runs on.
    pub fn here() -> Self {
        let kernel = nix::sys::utsname::uname().map_or_else(
            |_| String::new(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        let cpu = std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("model name"))?;
                line.split_once(':').map(|(_, name)| name.trim().to_owned())
            })
            .unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { kernel, cpu, cpus }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_ours_over_the_peers() {
        assert_eq!(
            Row::new("drop", 30.0, "ns/packet", Some(("xdp-filter", 60.0))).ratio,
            Some(0.5)
        );
        assert_eq!(
            Row::new("drop", 30.0, "ns/packet", Some(("none", 0.0))).ratio,
            None
        );
        assert_eq!(Row::new("drop", 30.0, "ns/packet", None).peer, None);
    }
}
