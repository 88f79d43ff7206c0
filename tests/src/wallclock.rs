//! A wall clock that a test sets, for agents of its choice.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use xtask::sh;

/// An agent's wall clock; its files are removed with it.
#[derive(Debug)]
pub struct WallClock {
    folder: PathBuf,
    seconds: File,
}

impl WallClock {
    /// Makes the library, and a stand-in for `binary` that runs under it: always, or only when its command
    /// line has `only` in it.
    ///
    /// # Errors
    /// When the compiler or the disk refuses.
    pub fn make(binary: &Path, only: Option<&str>) -> Result<(Self, PathBuf)> {
        let folder = std::env::temp_dir().join(format!("secmesh-clock-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let library = folder.join("wallclock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wallclock.c");
        sh::output(
            Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .args([&library, &source]),
        )?;
        let file = folder.join("seconds");
        let seconds = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)?;
        let stand_in = folder.join("secmesh");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *{}*) export LD_PRELOAD={} SECMESH_TEST_CLOCK={} ;; esac\nexec {} \"$@\"\n",
            only.unwrap_or_default(),
            library.display(),
            file.display(),
            binary.display()
        );
        std::fs::write(&stand_in, script)?;
        std::fs::set_permissions(&stand_in, std::fs::Permissions::from_mode(0o755))?;
        let clock = Self { folder, seconds };
        clock.set(0)?;
        Ok((clock, stand_in))
    }

    /// Sets it to so many seconds from the machine's.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, seconds: i64) -> Result<()> {
        self.seconds
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .context("cannot set the clock")
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        // In the folder for temporary files; what is left of it there is no harm.
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}
