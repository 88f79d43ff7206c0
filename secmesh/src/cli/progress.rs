//! A bar on standard error, if somebody looks.

use std::io::{self, IsTerminal as _, Write as _};

use super::time::grouped;
use crate::clock::{Clock as _, SystemClock};

/// Characters of the bar.
const WIDTH: u64 = 30;
/// Not drawn more often than this, ns.
const EVERY_NS: u64 = 50_000_000;

/// A bar; nothing at all where standard error is no terminal.
#[derive(Debug)]
pub struct Bar {
    shown: bool,
    drawn_ns: u64,
    dirty: bool,
}

impl Bar {
    /// A bar that is not drawn yet.
    pub fn new() -> Self {
        Self {
            shown: io::stderr().is_terminal(),
            drawn_ns: 0,
            dirty: false,
        }
    }

    /// Draws `done` of `total`, if the last time was a moment ago; without a total only what is done.
    pub fn draw(&mut self, what: &str, done: u64, total: Option<u64>, unit: &str) {
        if !self.shown {
            return;
        }
        let now = SystemClock.mono_ns();
        if now.saturating_sub(self.drawn_ns) < EVERY_NS {
            return;
        }
        self.drawn_ns = now;
        self.dirty = true;
        // Losing a picture of it is no reason to fail.
        let _ = write!(io::stderr(), "\r{}\x1b[K", line(what, done, total, unit));
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if self.dirty {
            self.dirty = false;
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, done: u64, total: Option<u64>, unit: &str) -> String {
    let Some(total) = total.filter(|total| *total > 0) else {
        return format!("{what}: {} {unit}", grouped(done));
    };
    let done = done.min(total);
    // Shares of at most 1 of small numbers; u128 so that nothing overflows.
    let share = |of: u64| -> usize {
        usize::try_from(u128::from(done) * u128::from(of) / u128::from(total)).unwrap_or(0)
    };
    let full = share(WIDTH);
    let bar = format!(
        "{}{}",
        "#".repeat(full),
        " ".repeat(usize::try_from(WIDTH).unwrap_or(0).saturating_sub(full))
    );
    format!(
        "{what} [{bar}] {:>3} % {} of {} {unit}",
        share(100),
        grouped(done),
        grouped(total)
    )
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_bar_shows_what_is_done_of_what() {
        assert_eq!(
            line("loading", 500_000, Some(1_000_000), "entries"),
            "loading [###############               ]  50 % 500,000 of 1,000,000 entries"
        );
        assert_eq!(
            line("reading", 12_345, None, "bytes"),
            "reading: 12,345 bytes"
        );
        assert!(line("x", u64::MAX, Some(3), "y").contains("100 % 3 of 3"));
        assert!(line("x", 0, Some(0), "y").ends_with("0 y"));
    }
}
